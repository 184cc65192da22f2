"""Checks the completions of a prompts file, and runs that were killed."""

import functools
import gzip
import json
import shutil

import gin
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import seqio

from ipo_md.core import types
from ipo_md.data import prompt_format
from ipo_md.evaluation import completions_file
from ipo_md.evaluation import infer
from ipo_md.models import decoder_only
from ipo_md.models import model as model_lib
from ipo_md.sampling import sampler as sampler_lib
from ipo_md.sampling import sequences

pytestmark = pytest.mark.slow

VOCABULARY = seqio.ByteVocabulary()
TEXTS = ['a cat', 'two dogs ran', 'owl', 'the end of it', 'x']
MODEL = model_lib.Model(
  functools.partial(
    decoder_only.DecoderOnly,
    vocab_size=264,  # 259 of the vocabulary, rounded up for the mesh.
    emb_dim=16,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    num_layers=1,
    mlp_dim=16,
    logits_via_embedding=True,
    rope_theta=1e4,
    norm_epsilon=1e-5,
    dropout_rate=0.0,
  )
)


@pytest.fixture(scope='module', name='checkpoints')
def checkpoints_fixture(tmp_path_factory):
  """Saves two different policies."""
  path = tmp_path_factory.mktemp('checkpoints')
  for seed, name in enumerate(('policy', 'reference')):
    params = MODEL.init(jax.random.key(seed))
    params = jax.tree.map(lambda x: 4 * x, params)
    with ocp.CheckpointManager(path / name / 'checkpoints') as manager:
      manager.save(
        0,
        args=ocp.args.StandardSave({'params': params}),
        custom_metadata={},
      )
  return path


def run(path, checkpoints, prompts='prompts.txt', sampler=None, **changes):
  """Writes PROMPTS_FILE, runs `infer` and returns completions.jsonl."""
  path.mkdir(exist_ok=True)
  file = path / prompts
  if not file.exists():
    rows = TEXTS
    if file.suffix == '.jsonl':
      rows = [json.dumps({'prompt': text, 'other': 1}) for text in TEXTS]
    file.write_text('\n'.join(rows) + '\n')
  arguments = {
    'model_dir': str(path / 'out'),
    'seed': 0,
    'mesh_shape': (1, 2, 4),
    'model': MODEL,
    'checkpoint_path': str(checkpoints / 'policy'),
    'reference_checkpoint_path': str(checkpoints / 'reference'),
    'prompts': infer.Prompts(
      prompts_file=str(file),
      task=lambda: pytest.fail('the task was asked for'),
      vocabulary=lambda: VOCABULARY,
      prompt_format=prompt_format.PromptFormat(),
      task_feature_lengths={'inputs': 16},
    ),
    'batch_size': 2,
    'sampler': sampler_lib.Sampler(max_new_tokens=6, eos_id=1, **sampler or {}),
    'mixture_coefs': (0.0, 0.5),
  }
  infer.infer(**arguments | changes)
  return (path / 'out' / completions_file.NAME).read_bytes()


@pytest.fixture(scope='module', name='whole')
def whole_fixture(checkpoints, tmp_path_factory):
  path = tmp_path_factory.mktemp('whole')
  return path, run(path, checkpoints)


def test_a_line_for_each_prompt_with_k_completions(whole):
  path, content = whole
  lines = [json.loads(line) for line in content.splitlines()]
  assert [line['index'] for line in lines] == list(range(len(TEXTS)))
  assert [line['prompt'] for line in lines] == TEXTS
  for line in lines:
    assert len(line['completions']) == 2
    for completion in line['completions']:
      assert completion['ended'] or completion['tokens'] == 6
      assert completion['log_prob'] < 0
      assert completion['reference_log_prob'] < 0
  assert (path / 'out' / 'COMPLETED').exists()


def test_json_lines_give_what_text_gives(whole, checkpoints, tmp_path):
  assert run(tmp_path, checkpoints, 'prompts.jsonl') == whole[1]


@pytest.mark.parametrize('kept', [0, 1, 4])
def test_a_killed_run_continues_after_its_last_whole_line(
  whole, checkpoints, tmp_path, kept
):
  out = tmp_path / 'out'
  out.mkdir()
  (out / 'config.gin').write_text('')
  lines = whole[1].splitlines(keepends=True)
  (out / completions_file.NAME).write_bytes(
    b''.join(lines[:kept]) + lines[kept][:20]
  )
  assert run(tmp_path, checkpoints) == whole[1]
  assert (out / 'COMPLETED').exists()


def test_the_batch_size_changes_only_rounding(whole, checkpoints, tmp_path):
  content = run(tmp_path, checkpoints, batch_size=4)
  lines = zip(content.splitlines(), whole[1].splitlines(), strict=True)
  for line, expected in (map(json.loads, pair) for pair in lines):
    for ours, theirs in zip(
      line['completions'], expected['completions'], strict=True
    ):
      for name in ('log_prob', 'reference_log_prob'):
        np.testing.assert_allclose(ours.pop(name), theirs.pop(name), rtol=1e-4)
    assert line == expected


def killed(path, whole, lines):
  """Makes the MODEL_DIR of a run that was killed after some lines."""
  shutil.copytree(whole[0] / 'out', path / 'out')
  (path / 'out' / 'COMPLETED').unlink()
  kept = whole[1].splitlines(keepends=True)[:lines]
  (path / 'out' / completions_file.NAME).write_bytes(b''.join(kept))


def test_a_run_continues_with_another_batch_size(whole, checkpoints, tmp_path):
  killed(tmp_path, whole, 3)
  config = tmp_path / 'out' / 'config.gin'
  bindings = (
    'from __gin__ import dynamic_registration\n'
    'from ipo_md.evaluation import infer\n'
    'infer.infer.batch_size = %BATCH_SIZE\n'
    'BATCH_SIZE = '
  )
  gin.parse_config(f'{bindings}4')
  config.write_text(gin.config_str().replace('= 4', '= 2'))
  try:
    lines = run(tmp_path, checkpoints, batch_size=4).splitlines()
    (tmp_path / 'out' / 'COMPLETED').unlink()
    config.write_text('SEED = 2\n')
    with pytest.raises(ValueError, match='other bindings'):
      run(tmp_path, checkpoints)
  finally:
    gin.clear_config()
  texts = lambda line: [c['text'] for c in json.loads(line)['completions']]
  assert list(map(texts, lines)) == list(map(texts, whole[1].splitlines()))


def test_lines_of_other_checkpoints_or_prompts_are_not_mixed(
  whole, checkpoints, tmp_path
):
  killed(tmp_path, whole, 3)
  shutil.copytree(checkpoints, tmp_path / 'newer')
  folder = tmp_path / 'newer' / 'policy' / 'checkpoints'
  (folder / '0').rename(folder / '7')
  out = tmp_path / 'out' / completions_file.NAME
  before = out.read_bytes()
  with pytest.raises(ValueError, match='CHECKPOINT_PATH: .*/0/default.*/7/def'):
    run(
      tmp_path,
      checkpoints,
      checkpoint_path=str(tmp_path / 'newer' / 'policy'),
    )
  (tmp_path / 'prompts.txt').write_text('another\n' * 5)
  with pytest.raises(ValueError, match='PROMPTS_FILE: .* then, .* now'):
    run(tmp_path, checkpoints)
  assert out.read_bytes() == before


@pytest.mark.parametrize('lines', [3, None])
def test_a_corrected_prompts_file_is_no_finished_run(
  whole, checkpoints, tmp_path, capsys, lines
):
  """Nor one that goes on, unless the change is accepted knowingly."""
  killed(tmp_path, whole, lines)
  if lines is None:
    (tmp_path / 'out' / 'COMPLETED').write_text('0\n')
  texts = [*TEXTS[:-1], 'y']
  (tmp_path / 'prompts.txt').write_text('\n'.join(texts) + '\n')
  with pytest.raises(ValueError, match='PROMPTS_FILE: .*ACCEPT|ACCEPT.*'):
    run(tmp_path, checkpoints)
  content = run(tmp_path, checkpoints, accept_changed_inputs=True)
  assert 'PROMPTS_FILE: ' in capsys.readouterr().out
  prompts = [json.loads(line)['prompt'] for line in content.splitlines()]
  assert prompts == (TEXTS if lines is None else texts)
  # Lines that were mixed knowingly are of these prompts from now on. Those of a
  # finished run are not.
  if lines is None:
    with pytest.raises(ValueError, match='PROMPTS_FILE: '):
      run(tmp_path, checkpoints)
    return
  run(tmp_path, checkpoints)
  assert 'is complete' in capsys.readouterr().out


def test_greedy_completions_have_their_log_probabilities(checkpoints, tmp_path):
  """Compares with teacher forcing, for the policy and for the reference."""
  content = run(
    tmp_path,
    checkpoints,
    sampler={'temperature': 0.0},
    mixture_coefs=(0.0,),
    batch_size=6,
  )
  ended = 0
  for line in map(json.loads, content.splitlines()):
    (completion,) = line['completions']
    ids = VOCABULARY.encode(completion['text']) + [1] * completion['ended']
    ended += completion['ended']
    if len(ids) != completion['tokens']:
      continue  # The bytes are not valid text.
    tokens = lambda ids: types.Tokens(
      ids=np.array(ids), mask=np.ones(np.shape(ids), bool)
    )
    pair = types.Completions(
      prompts=tokens([VOCABULARY.encode(line['prompt'])]),
      completions=tokens([[ids]]),
    )
    for seed, name in enumerate(('log_prob', 'reference_log_prob')):
      params = jax.tree.map(lambda x: 4 * x, MODEL.init(jax.random.key(seed)))
      expected = sequences.log_probs(MODEL, params, pair)[0].sum()
      np.testing.assert_allclose(completion[name], expected, rtol=1e-4)


@pytest.mark.parametrize(
  ('rows', 'changes', 'message'),
  [
    ('a\n\nb\n', {}, 'prompts.txt, row 2: the prompt is empty'),
    ('', {}, 'prompts.txt is empty'),
    ('a\n', {'reference_checkpoint_path': None}, 'MIXTURE_COEFS = .0.0, 0.5.'),
    ('a\n', {'mixture_coefs': (2.0,)}, 'MIXTURE_COEFS'),
    ('a\n', {'checkpoint_path': '/nowhere'}, 'CHECKPOINT_PATH /nowhere'),
  ],
)
def test_bad_configurations_are_refused(
  checkpoints, tmp_path, rows, changes, message
):
  (tmp_path / 'prompts.txt').write_text(rows)
  with pytest.raises(ValueError, match=message):
    run(tmp_path, checkpoints, **changes)


def test_a_row_without_a_prompt_is_named(checkpoints, tmp_path):
  (tmp_path / 'p.jsonl').write_text('{"prompt": "a"}\n{"text": "b"}\n')
  with pytest.raises(
    ValueError, match="PROMPTS_FILE .*p.jsonl, row 2: field 'prompt' is missing"
  ):
    run(tmp_path, checkpoints, 'p.jsonl')


def test_prompts_are_read_as_training_files_are(tmp_path):
  """The counts say what is cut, and a prompt may hold separators of lines."""
  texts = ['a\u2028b', 'x\u0085', 'a' * 40]
  rows = [json.dumps({'prompt': text}, ensure_ascii=False) for text in texts]
  path = tmp_path / 'prompts.jsonl.gz'
  path.write_bytes(gzip.compress('\ufeff'.encode() + '\n'.join(rows).encode()))
  prompts = infer.Prompts(
    prompts_file=str(path),
    task=lambda: pytest.fail('the task was asked for'),
    vocabulary=lambda: VOCABULARY,
    prompt_format=prompt_format.PromptFormat(),
    task_feature_lengths={'inputs': 16},
  )
  dataset = prompts.load()
  found = dataset.examples[0].prompts
  assert [VOCABULARY.decode(found.row(i).tolist()) for i in range(3)] == texts
  assert dataset.counts == {
    'examples': 3,
    'prompts_cut': 1,
    'tokens_unknown': 0,
    'prompts_with_special_tokens': 0,
    'prompts_trimmed': 0,
  }
