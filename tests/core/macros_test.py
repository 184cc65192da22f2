"""Tests of the table of macros and of the check against it."""

import math
import pathlib
import re

import gin
import pytest

from ipo_md import __main__ as main
from ipo_md.core import gin_config
from ipo_md.core import macros
from ipo_md.core import private_apis
from ipo_md.models import layer_stack

_ROOT = pathlib.Path(__file__).parents[2]
_GIN = sorted((_ROOT / 'gin').rglob('*.gin'))

# The macros that take each value; every other one refuses it.
_TAKE = {
  None: """AGREEMENT API_KEY_VARIABLE BEST_OF BOS_ID CACHE_DIR
    CHAT_DATE CHAT_TEMPLATE COLUMNS COMPARATOR_CHECKPOINT_PATH CONTEXT_LENGTH
    EMA_DECAY EOS_ID FIT
    HF_SOURCE_PATH INITIAL_CHECKPOINT_PATH JUDGE
    JUDGE_CHECKPOINT_PATH JUDGE_CONFIG_PATH JUDGE_SHARDING JUDGE_STEP
    KEEP_CHECKPOINTS LABEL MEASURE MODEL_CONFIG_PATH
    MIXTURE_OR_TASK_MODULE PREFERENCE_MODEL_CHECKPOINT_PATH PRICES
    PROFILE_START PROMPTS_FILE PROMPT_TASK
    REFERENCE_CHECKPOINT_PATH REFERENCE_SHARDING REFERENCE_STEPS
    JUDGE_TEXT REWARD_MODEL_CHECKPOINT_PATH REWARD_SCALES SKIP_GRADIENT_NORM
    SNAPSHOT_STEPS TRACKER TRUNCATION_REWARD VOCABULARY WANDB_ENTITY WANDB_GROUP
    WANDB_NAME WANDB_TAGS""",
  0: """ALPHA BOS_ID CHECKPOINT_PERIOD DROPOUT_RATE EMA_DECAY EOS_ID EVAL_PERIOD
    EXAMPLES HANG_SECONDS KEEP_BEST KEEP_PERIOD LEARNING_RATE LOG_PERIOD
    MAX_BAD_ROWS MAX_SKIPPED REWARD_HEAD SEED STEP TEMPERATURE TOP_K
    TRUNCATION_REWARD WARMUP_STEPS Z_LOSS""",
  -1: 'TRUNCATION_REWARD',
  1.5: """ALPHA BETA ETA HANG_SECONDS LEARNING_RATE LORA_ALPHA
    SKIP_GRADIENT_NORM TAU TEMPERATURE TIMEOUT TRUNCATION_REWARD Z_LOSS""",
  'word': """API_KEY_VARIABLE BASE_URL CACHE_DIR CHAT_DATE CHAT_TEMPLATE
    CHECKPOINT_PATH
    COMPARATOR_CHECKPOINT_PATH EVAL_SPLIT HELD_OUT_SPLIT HF_SOURCE_PATH
    INFER_SPLIT INITIAL_CHECKPOINT_PATH JUDGE_CHECKPOINT_PATH JUDGE_CONFIG_PATH
    MODEL_CONFIG_PATH
    MIXTURE_OR_TASK_MODULE MIXTURE_OR_TASK_NAME MODEL_DIR OUTPUT_DIR
    PREFERENCE_MODEL_CHECKPOINT_PATH PREFERENCE_TASK PROMPTS_FILE PROMPT_TASK
    RATER RATER_CACHE RATER_PROMPT REFERENCE_CHECKPOINT_PATH REFERENCE_LOG_PROBS
    REWARD_MODEL_CHECKPOINT_PATH SPLIT SUPERVISED_TASK TOKENIZER_PATH TOPOLOGY
    TRAIN_FILE TRAIN_SPLIT VALIDATION_FILE WANDB_ENTITY WANDB_GROUP WANDB_NAME
    WANDB_PROJECT""",
  '': '',
  (): '',
  math.nan: '',
  math.inf: '',
  True: """ACCEPT_CHANGED_INPUTS INT8_SAMPLING PER_TOKEN PRINT_SHARDINGS
    JUDGE_SCAN_LAYERS PROMPTS_ONLY SCAN_LAYERS""",
}


@pytest.fixture(autouse=True)
def _clear():
  gin.clear_config()
  yield
  gin.clear_config()


def bind(**values):
  for name, value in values.items():
    gin.bind_parameter(f'{name}/gin.macro.value', value)


def value_of(name):
  return gin.query_parameter(f'{name}/gin.macro.value')


def named(text: str) -> set[str]:
  """Returns the macros that the code of a gin file binds or refers to."""
  code = re.sub('#.*', '', text)
  bound = re.findall(r'^([A-Z]\w+) =', code, re.MULTILINE)
  return {*re.findall(r'%(\w+)', code), *bound}


def test_the_table_has_every_macro_of_the_gin_files_and_no_other():
  found = set().union(*(named(path.read_text()) for path in _GIN))
  assert found == macros.TABLE.keys()


def test_the_page_of_the_docs_is_up_to_date():
  """`python -m ipo_md.core.macros > docs/macros.md` writes it."""
  assert (_ROOT / 'docs' / 'macros.md').read_text() == macros.page()
  assert 'macros.md' in (_ROOT / 'mkdocs.yml').read_text()


@pytest.mark.parametrize('name', sorted(macros.TABLE))
def test_a_wrong_value_is_one_line_that_names_the_macro(name):
  for value, take in _TAKE.items():
    bind(**{name: value})
    if name in take.split():
      macros.check()
      continue
    with pytest.raises(ValueError) as error:
      macros.check()
    message = str(error.value)
    assert message.startswith(f'{name} = {value!r}: {name} must be ')
    assert '\n' not in message
    assert len(message) < 300


@pytest.mark.parametrize(
  'path', _GIN, ids=lambda p: f'{p.parent.name}-{p.stem}'
)
def test_the_values_of_a_gin_file_are_right(path):
  gin_config.add_root()
  gin.parse_config_file(str(path))
  names = re.findall(r'^([A-Z]\w+) =', path.read_text(), re.MULTILINE)
  for name in names:
    value = private_apis.value_of(name)
    assert repr(macros.TABLE[name].read(value)) == repr(value)


@pytest.mark.parametrize(
  'name', ['TRAIN_STEPS', 'BATCH_SIZE', 'TOP_K', 'EOS_ID']
)
@pytest.mark.parametrize('value', [8.0, 1e1])
def test_binds_whole_numbers_as_integers(name, value):
  bind(**{name: value})
  macros.check()
  assert type(value_of(name)) is int
  assert value_of(name) == value


def test_binds_whole_numbers_inside_of_tuples_and_dictionaries():
  bind(
    MESH_SHAPE=(1.0, -1, 1),
    TASK_FEATURE_LENGTHS={'inputs': 8.0, 'targets': 4},
    EOS_ID=(1.0, 2),
  )
  macros.check()
  assert repr(value_of('EOS_ID')) == '(1, 2)'
  assert repr(value_of('MESH_SHAPE')) == '(1, -1, 1)'
  assert repr(value_of('TASK_FEATURE_LENGTHS')) == "{'inputs': 8, 'targets': 4}"


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('MESH_SHAPE', (1, 0, 1)),
    ('MESH_SHAPE', (1, 1, 1, 1, 1)),
    ('MIXTURE_COEFS', (0.0, 1.5)),
    ('MIXTURE_COEFS', 0.125),
    ('MIXTURE_COEFS', (True, False)),
    ('TASK_FEATURE_LENGTHS', {'inputs': 0}),
    ('TASK_FEATURE_LENGTHS', {'inputs': None}),
    ('POLICIES', {}),
    ('POLICIES', {'ipo': ['/a', 1]}),
    ('POLICIES', {'ipo': []}),
    ('JUDGES', {'rater': 'gpt'}),
    ('JUDGES', ('rater',)),
    ('JUDGE_ANSWERS', ('1',)),
    ('LORA_TARGETS', 'query'),
    ('PRICES', (1, -1)),
    ('TRAIN_FILE', [('a.jsonl', 0)]),
    ('TRAIN_FILE', ['a.jsonl']),
    ('TRAIN_FILE', [('a.jsonl', 1), ('b.jsonl',)]),
    ('PREFERENCE_FILES', {'train': [(1, 2)]}),
    ('COLUMNS', ('prompt', 'question')),
    ('DTYPE', 'bf16'),
    ('DROPOUT_RATE', 1.0),
    ('EOS_ID', (1, -1)),
    ('TOP_P', 0.0),
    ('SEED', 2**32),  # which JAX takes for 0
    ('TRAIN_STEPS', 1e12),
    ('COMPARATOR_PROMPT', '{text} {second} {first}'),
    ('REWARD_PROMPT', '{text} {first} {second}'),
  ],
)
def test_refuses_what_is_wrong_inside_of_a_value(name, value):
  bind(**{name: value})
  with pytest.raises(ValueError, match=f'^{name} = .*must be'):
    macros.check()


def test_a_mixture_of_files_is_taken():
  mixed = [('a.jsonl', 2.0), ('data/train-*.parquet', 1)]
  bind(TRAIN_FILE=mixed, PREFERENCE_FILES={'train': mixed, 'test': 'a.jsonl'})
  macros.check()
  assert value_of('TRAIN_FILE') == mixed


def test_the_largest_seeds_are_taken():
  bind(SEED=2**32 - 1)
  macros.check()


def test_names_the_macro_that_a_value_comes_through():
  gin.parse_config('TRAIN_STEPS = %MINE\nMINE = 0.5')
  with pytest.raises(ValueError, match='^TRAIN_STEPS = %MINE = 0.5: TRAIN_ST'):
    macros.check()
  gin.parse_config('MINE = 5.0')
  macros.check()
  assert repr(value_of('TRAIN_STEPS')) == '5'


def test_refuses_macros_that_refer_to_themselves():
  gin.parse_config('TRAIN_STEPS = %BATCH_SIZE\nBATCH_SIZE = %TRAIN_STEPS')
  with pytest.raises(ValueError, match='refers to itself'):
    macros.check()


_IMPORTS = """
from __gin__ import dynamic_registration
from ipo_md import models
from ipo_md.algorithms import losses
"""


@pytest.mark.parametrize(
  ('binding', 'message'),
  [
    ('MODEL = @models.Model', r'needs brackets, @models.Model\(\)'),
    ('TRAIN_STEPS = @losses.ipo', '@losses.ipo: TRAIN_STEPS must be'),
    ('PREFERENCE_TASK = @losses.ipo', 'the name of a task, or a task, such as'),
    ("LOSS = 'ipo'", 'must be a loss, such as @losses.ipo'),
  ],
)
def test_references_of_the_wrong_kind(binding, message):
  gin.parse_config(f'{_IMPORTS}\n{binding}')
  with pytest.raises(ValueError, match=message):
    macros.check()


def test_none_is_refused_where_the_run_does_not_take_it():
  run = (
    'from __gin__ import dynamic_registration\n'
    'from ipo_md.training import config\n'
    'RUN = @config.Start\n'
    'config.Start.initial_checkpoint_path = %INITIAL_CHECKPOINT_PATH\n'
    'config.Start.fresh = %JUDGE_CHECKPOINT_PATH\n'
    'INITIAL_CHECKPOINT_PATH = None\n'
  )
  gin.parse_config(run + "JUDGE_CHECKPOINT_PATH = '/x'")
  macros.check()
  gin.parse_config('JUDGE_CHECKPOINT_PATH = None')
  with pytest.raises(
    ValueError, match='PATH = None: config.Start.fresh of this'
  ):
    macros.check()


def test_a_users_own_macro_is_not_checked():
  bind(MY_STEPS=-1, MINE=None)
  macros.check()


def test_choices_are_those_of_the_code():
  choices = macros.TABLE['REMAT_POLICY'].kind.choices
  assert set(choices) == layer_stack.REMAT_POLICIES.keys()


def test_error_text_drops_the_lines_of_gin_and_jax():
  error = ValueError(
    "Bad.\n  In call to configurable 'f' (<function f at 0x1>)"
  )
  error.add_note('For simplicity, JAX has removed its internal frames ...')
  error.add_note('A hint.')
  assert main.error_text(error) == 'Bad.\nA hint.'
