"""The command line: what a user gets wrong."""

import importlib.util
import re
import subprocess
import sys

import pytest

from ipo_md.core import gin_config
from tests import command_line

FILES = command_line.FILES
arguments = command_line.arguments
call_fixture = command_line.call_fixture
error_of = command_line.error_of


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'files': ('gin/runs/supervise.gin', *FILES[1:])},
      'gin/runs/supervise.gin',
    ),
    (
      {'LEARNIN_RATE': 1},
      'LEARNIN_RATE is set, .* Did you mean LEARNING_RATE',
    ),
    (
      {'without': ('TRAIN_STEPS',), 'TRAIN_STEP': 1},
      'TRAIN_STEP is set, .* Did you mean TRAIN_STEPS',
    ),
    ({'without': ('TRAIN_STEPS',)}, 'needed: TRAIN_STEPS. Set it with'),
    (
      {'files': FILES[:1], 'without': ('DROPOUT_RATE',)},
      r'needed: EOS_ID \(by a file of gin/models\), .*'
      r'TASK_FEATURE_LENGTHS \(by a file of gin/tasks\)',
    ),
    (
      {'files': FILES[1:]},
      r'RUN \(by a file of gin/runs\)|is set, but nothing',
    ),
    (
      {'training.train.seeed': 1},
      "'training.train' doesn't have a parameter named 'seeed'",
    ),
    ({'training.trian.seed': 1}, "No configurable matching 'training.trian'"),
    ({'OPTIMIZER': '@optimizers.adamm'}, "'@optimizers.adamm'"),
    ({'LEARNING_RATE': 'le-4'}, 'LEARNING_RATE = le-4'),
    ({'LEARNING_RATE': '(1'}, 'A bracket is left open in LEARNING_RATE = '),
    ({'MIXTURE_COEFS': '(0.0,)*8'}, r'\(0.0,\)\*8: .* not an expression'),
    (
      {'data.load.split': 'test'},
      "data.load.split = test .*needs quotes here: .* = 'test'",
    ),
    ({'learning_rate': 1e-4}, 'learning_rate is set, .*mean LEARNING_RATE'),
    (
      {'LEARNING_RATE': "'1e-4'"},
      "LEARNING_RATE = '1e-4': LEARNING_RATE must be a number of at least 0",
    ),
    ({'TRAIN_STEPS': 0}, 'TRAIN_STEPS = 0: .* whole number of at least 1'),
    ({'OPTIMIZER': 'adam'}, 'OPTIMIZER = adam: .* such as @optim.adam'),
    (
      {'VOCABULARY': '/models/tokenizer.json'},
      "VOCABULARY = '/models/tokenizer.json': .* @data.tokenizer_vocabulary()",
    ),
    (
      {'TASK_FEATURE_LENGTHS': "{'inputs': 1, 'targets': 36}"},
      r"TASK_FEATURE_LENGTHS\['inputs'\] is 1, which leaves no room",
    ),
    (
      {'TASK_FEATURE_LENGTHS': "{'inputs': 74, 'target': 36}"},
      "TASK_FEATURE_LENGTHS has no length .* for 'targets'",
    ),
    (
      {'SUPERVISED_TASK': "'mini_tldr_stf'"},
      "MIXTURE_OR_TASK_NAME 'mini_tldr_stf' .* Nearest: mini_tldr_sft",
    ),
  ],
)
def test_what_is_wrong_is_said_once(call, tmp_path, capsys, changes, message):
  err = error_of(call, arguments(tmp_path, **changes), capsys)
  assert re.search(message, err), err
  assert len(err.splitlines()) == 2  # the second is (--traceback shows where.)
  assert not list(tmp_path.iterdir())


def online(folder, *, judge='likelihood', algorithm='ipo', **changes):
  """The command line of an online run whose checkpoints do not exist."""
  files = ('gin/runs/online.gin', *FILES[1:])
  files += (f'gin/judges/{judge}.gin', f'gin/algorithms/{algorithm}.gin')
  paths = {
    'INITIAL_CHECKPOINT_PATH': '/no/policy',
    'JUDGE_CHECKPOINT_PATH': None if judge == 'indifferent' else '/no/judge',
  }
  return arguments(folder / 'run', files=files, **paths | changes)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'INITIAL_CHECKPOINT_PATH': None}, 'needs a reference policy: set REF'),
    (
      {'JUDGE_CHECKPOINT_PATH': None},
      'JUDGE_CHECKPOINT_PATH = None, but JUDGE',
    ),
    (
      {'LOSS': '@losses.ipo()'},
      "ipo.. missing .* 'preference'. Bind them, or leave out the brackets",
    ),
    (
      {'JUDGE': '@other/sampling.Sampler()'},
      'JUDGE, a Sampler, cannot be called: it must be a judge',
    ),
    ({'JUDGE': None}, 'JUDGE = None: algorithms.Feedback.judge of this run'),
    ({'EOS_ID': None}, 'EOS_ID = None: .*sampling.Sampler.eos_id of this run'),
    ({'PROMPT_TASK': None}, 'PROMPT_TASK = None: MIXTURE_OR_TASK_NAME must be'),
    ({'MIXTURE_COEFS': (0.0,)}, 'needs 2 completions of a prompt, not 1'),
    ({'TRUNCATION_REWARD': 0}, 'TRUNCATION_REWARD is a reward, but LOSS = ipo'),
    (
      {'judge': 'reward_model', 'REWARD_HEAD': 0},
      'no reward head: set .*REWARD_HEAD',
    ),
    # Samples that have to be the policy's own for an unbiased gradient.
    (
      {'algorithm': 'nash_md', 'MIXTURE_COEFS': (0.125, 0.125)},
      r'y_1 is sampled from the policy itself, .* \(0.125, 0.125\): set its',
    ),
    (
      {'algorithm': 'nash_ema', 'MIXTURE_COEFS': (1.0, 1.0)},
      'y_1 is sampled from the policy itself',
    ),
    (
      {'algorithm': 'rl', 'MIXTURE_COEFS': (0.0, 0.125)},
      'every completion is sampled from the policy itself',
    ),
    ({'algorithm': 'nash_md', 'PER_TOKEN': True}, 'PER_TOKEN = True with LOSS'),
  ],
)
def test_an_online_run_that_cannot_be_is_refused_before_it_writes(
  call, tmp_path, capsys, changes, message
):
  err = error_of(call, online(tmp_path, **changes), capsys)
  assert re.search(message, err), err
  assert len(err.splitlines()) == 2
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('LEARNIN_RATE = 1', 'LEARNIN_RATE is set, .* Did you mean LEARNING_RATE'),
    ('LEARNING_RATE 1', r'user.gin, line \d: .* LEARNING_RATE 1'),
    ('from ipo_md import stepz', "No module named 'ipo_md.stepz'"),
    (
      'from ipo_md import algorithms\nalgorithms.onlin_step.top_k = 1',
      'algorithms.onlin_step; .* has no attribute onlin_step',
    ),
    (
      'algorithms.online_step.loss = 1',
      "'algorithms' was not provided by an import",
    ),
  ],
)
def test_a_file_of_the_user(call, tmp_path, capsys, text, message):
  path = tmp_path / 'user.gin'
  path.write_text(f'from __gin__ import dynamic_registration\n{text}\n')
  args = arguments(tmp_path / 'run', files=(*FILES, str(path)))
  err = error_of(call, args, capsys)
  assert re.search(message, err), err
  assert not (tmp_path / 'run').exists()


def test_a_binding_without_a_value():
  for given in ('--gin.TAU', '--gin.TAU=', '--gin.TAU= '):
    with pytest.raises(SystemExit, match=f'{given}: write --gin.TAU=VALUE'):
      gin_config.rewrite_gin_args(['ipo_md', given])
  assert gin_config.rewrite_gin_args(['--gin.A="b=c"']) == [
    '--gin_bindings=A = "b=c"'
  ]


@pytest.mark.parametrize(
  ('given', 'read'),
  [
    ('MODEL_DIR=/tmp/x', "MODEL_DIR = '/tmp/x'"),
    ("MODEL_DIR='/tmp/x'", "MODEL_DIR = '/tmp/x'"),
    ('MODEL_DIR=out/x', "MODEL_DIR = 'out/x'"),
    ('MODEL_DIR=~/x', "MODEL_DIR = '~/x'"),
    ('MODEL_DIR=../x:best', "MODEL_DIR = '../x:best'"),
    ('MODEL_DIR=gs://bucket/x-1', "MODEL_DIR = 'gs://bucket/x-1'"),
    ('EVAL_SPLIT=test', "EVAL_SPLIT = 'test'"),
    ('EVAL_SPLIT=None', 'EVAL_SPLIT = None'),
    # Whether a word is a text is known from the macro.
    ('MODEL_DIR=out', "MODEL_DIR = 'out'"),
    ('MODEL_DIR=my runs/x', "MODEL_DIR = 'my runs/x'"),
    ('RATER=gpt-4o', "RATER = 'gpt-4o'"),
    ('TOPOLOGY=v5e:4x4', "TOPOLOGY = 'v5e:4x4'"),
    ('EVAL_SPLIT=train[:10%]', "EVAL_SPLIT = 'train[:10%]'"),
    (
      'MIXTURE_OR_TASK_MODULE=tasks.xsum',
      "MIXTURE_OR_TASK_MODULE = 'tasks.xsum'",
    ),
    ('MIXTURE_OR_TASK_MODULE=("a",)', 'MIXTURE_OR_TASK_MODULE = ("a",)'),
    ('PREFERENCE_TASK=@f.pairs()', 'PREFERENCE_TASK = @f.pairs()'),
    ('MODEL_DIR=%MINE', 'MODEL_DIR = %MINE'),
    ('RATER=5', 'RATER = 5'),
    ('data.load.split=test', 'data.load.split = test'),
    # A misspelt number stays what it is, for gin to refuse.
    ('TAU=O.1', 'TAU = O.1'),
    ('LEARNING_RATE=le-4', 'LEARNING_RATE = le-4'),
    ('TAU=1/2', 'TAU = 1/2'),
    ('TAU=.5/2', 'TAU = .5/2'),
    ('JUDGE=@eval/judges.indifferent', 'JUDGE = @eval/judges.indifferent'),
    ('SPLITS={"a": "b/c"}', 'SPLITS = {"a": "b/c"}'),
  ],
)
def test_a_path_needs_no_quotes_and_a_number_is_never_a_text(given, read):
  (binding,) = gin_config.rewrite_gin_args([f'--gin.{given}'])
  assert binding == f'--gin_bindings={read}'


@pytest.mark.parametrize('args', [[], ['gin/runs/online.gin'], ['--help']])
def test_first_contact_is_a_short_usage_and_nothing_heavy(args):
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'ipo_md', *args],
    cwd=command_line.ROOT,
    capture_output=True,
    text=True,
  )
  imported = [
    line for line in done.stderr.splitlines() if 'import time' in line
  ]
  said = done.stdout + done.stderr.replace('\n'.join(imported), '')
  assert done.returncode == 1
  assert 'Traceback' not in said
  assert '--gin_file' in said
  if args != ['--help']:
    assert 'usage: python -m ipo_md' in said
    assert 'side_by_side' in said
  for module in ('tensorflow', 'seqio', 'orbax'):
    assert not any(line.split('|')[-1].strip() == module for line in imported)


def test_a_tracker_without_its_package_leaves_nothing(
  call, tmp_path, capsys, monkeypatch
):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *rest: None if name == 'wandb' else find_spec(name, *rest),
  )
  files = (*FILES, 'gin/wandb.gin')
  said = error_of(call, arguments(tmp_path / 'run', files=files), capsys)
  assert "pip install 'ipo_md[wandb]'" in said
  assert not (tmp_path / 'run').exists()


def test_a_class_that_lacks_arguments_is_named(call, tmp_path, capsys):
  overlay = tmp_path / 'judges.gin'
  overlay.write_text(
    'from __gin__ import dynamic_registration\n'
    'from ipo_md import judges\n'
    "JUDGES = {'mine': @judges.LearnedJudge()}\n"
    'judges.LearnedJudge.judge = @judges.likelihood\n'
  )
  args = [
    '--gin_file=gin/runs/side_by_side.gin',
    *(f'--gin_file={file}' for file in (*FILES[1:], overlay)),
    "--gin.POLICIES={'a': '/no/a', 'b': '/no/b'}",
    '--gin.REFERENCE_CHECKPOINT_PATH=/no/a',
    f'--gin.MODEL_DIR={tmp_path / "run"}',
  ]
  err = error_of(call, args, capsys)
  assert re.search('LearnedJudge.* missing .*batch_size.*Bind them', err), err
