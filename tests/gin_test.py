"""Every gin file resolves, by `jax.eval_shape`: no data, weights, compilation.

The axes are run x model x task x judge x algorithm. `PUBLISHED` are the
combinations of the papers at full size; a pairwise covering set adds what they
leave out; `INCOMPATIBLE` are combinations that say what is wrong.
"""

from collections.abc import Iterable
import dataclasses
import functools
import itertools
import pathlib
import re

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from ipo_md import __main__ as main
from ipo_md import data
from ipo_md import examples
from ipo_md import held_out
from ipo_md import play
from ipo_md import reference_log_probs
from ipo_md import sampling
from ipo_md import sequences
from ipo_md import sharding
from ipo_md import types
from ipo_md.models import lora

_ROOT = pathlib.Path(__file__).parent.parent
_GIN = _ROOT / 'gin'


def _files(folder: str) -> list[str]:
  return sorted(path.stem for path in (_GIN / folder).glob('*.gin'))


# Vocabulary and EOS of a model, by the start of its file's name.
VOCABULARIES = {
  't5_tiny': (320, 1),
  't5_': (32_100, 1),
  'decoder_tiny': (320, 1),
  'mistral': (32_000, 2),
  'mixtral': (32_000, 2),
  'llama': (128_256, 128_001),
}
# One of each kind of network; the others differ in numbers and details.
NETWORKS = (
  't5_tiny',
  't5_1_1_large+judge_t5_1_1_xl',
  'mistral_7b',
  'mixtral_8x7b',
)
_PREFERENCE_FILES = (
  "TRAIN_FILE = '/train.jsonl'",
  "VALIDATION_FILE = '/validation.jsonl'",
  "TASK_FEATURE_LENGTHS = {'inputs': 512, 'targets': 512}",
)
TASKS = dict.fromkeys(_files('tasks'), ()) | {
  'preference_files': _PREFERENCE_FILES,
  'preference_files:rewards': (
    *_PREFERENCE_FILES,
    'PREFERENCE_TASK = @preference_files.rewards()',
  ),
  'ultrafeedback:rewards': ("PREFERENCE_TASK = 'ultrafeedback_rewards'",),
}
OF_REWARDS = ('info_nca', 'nca', 'rl')
OF_OWN_SAMPLES = ('ipo_md', 'nash_ema', 'nash_md', 'rl')
# What a user binds.
GIVEN = {
  'MODEL_DIR': "'/run'",
  'TRAIN_STEPS': '10',
  'BATCH_SIZE': '8',
  'INITIAL_CHECKPOINT_PATH': "'/policy'",
  'JUDGE_CHECKPOINT_PATH': "'/judge'",
}


@dataclasses.dataclass(frozen=True)
class Choice:
  """One gin file of each axis; '+' joins two, ':' names other bindings."""

  run: str
  model: str
  task: str
  judge: str = ''
  algorithm: str = ''
  bindings: tuple[str, ...] = ()
  vocabulary: str | None = None  # of another model than this one
  overlay: str = ''

  def __str__(self) -> str:
    return '-'.join(
      filter(None, map(str, dataclasses.astuple(self)[:5] + self.bindings))
    )

  @property
  def files(self) -> list[str]:
    named = [
      ('runs', self.run),
      *(('models', name) for name in self.model.split('+')),
      ('tasks', self.task.partition(':')[0]),
      ('judges', self.judge),
      ('algorithms', self.algorithm),
      ('', self.overlay),
    ]
    return [str(pathlib.Path('gin', *f)) + '.gin' for f in named if f[1]]

  @property
  def given(self) -> list[str]:
    """What a user of this run binds: what nothing refers to is an error."""
    bound = dict(GIVEN)
    if self.judge == 'indifferent':
      bound['JUDGE_CHECKPOINT_PATH'] = 'None'
    elif not self.judge or self.run == 'judge':
      del bound['JUDGE_CHECKPOINT_PATH']
    if self.run == 'supervised':
      del bound['INITIAL_CHECKPOINT_PATH']
    return [f'{name} = {value}' for name, value in bound.items()]


def large(run, judge='', algorithm='', task='tldr') -> Choice:
  return Choice(run, 't5_1_1_large+judge_t5_1_1_xl', task, judge, algorithm)


PUBLISHED = [
  large('supervised'),
  large('judge', 'comparator'),
  large('judge', 'reward_model'),
  *(
    large('online', 'comparator', algorithm)
    for algorithm in ('dpo', 'ipo', 'ipo_md', 'nash_ema', 'nash_md', 'slic')
  ),
  large('online', 'reward_model', 'rl'),
  large('online', 'comparator', 'ipo_md', task='xsum'),
  *(
    large('offline', 'comparator', algorithm)
    for algorithm in ('dpo', 'ipo', 'slic')
  ),
  *(
    Choice(
      'offline',
      'mistral_7b',
      'ultrafeedback:rewards',
      'likelihood',
      algorithm,
      overlay='lora',
    )
    for algorithm in ('nca', 'info_nca')
  ),
]


def is_valid(choice: Choice) -> bool:
  """Whether the parts go together."""
  rewards = choice.task.endswith(':rewards')
  own = choice.model.startswith('t5_') or choice.task != 'mini_tldr'
  if choice.run == 'supervised':
    return own and not choice.judge + choice.algorithm and not rewards
  if choice.run == 'judge':
    known = choice.judge not in ('', 'indifferent')
    return own and known and not choice.algorithm and not rewards
  if not (own and choice.judge and choice.algorithm):
    return False
  if choice.run == 'online':
    scored = choice.algorithm in OF_REWARDS
    return not rewards and not (scored and choice.judge == 'comparator')
  if choice.algorithm in OF_OWN_SAMPLES:
    return False
  return rewards == (choice.algorithm in OF_REWARDS)


def pairwise(choices: Iterable[Choice], covered: Iterable[Choice]):
  """Some of `choices`, in which any two parts meet that meet in one of all."""
  numbers = {}

  def pairs(choice: Choice) -> int:
    parts = [
      part for part in enumerate(dataclasses.astuple(choice)[:5]) if part[1]
    ]
    bits = 0
    for pair in itertools.combinations(parts, 2):
      bits |= 1 << numbers.setdefault(pair, len(numbers))
    return bits

  open_ = [(pairs(choice), choice) for choice in choices]
  done = functools.reduce(int.__or__, map(pairs, covered), 0)
  chosen = []
  while True:
    bits, best = max(open_, key=lambda c: (c[0] & ~done).bit_count())
    if not bits & ~done:
      return chosen
    done |= bits
    chosen.append(best)


ALL = [
  Choice(*parts)
  for parts in itertools.product(
    ('online', 'offline', 'judge', 'supervised'),
    NETWORKS,
    TASKS,
    ('', *_files('judges')),
    ('', *_files('algorithms')),
  )
]
COVERING = pairwise(filter(is_valid, ALL), PUBLISHED)
OTHERS = (
  [
    Choice('supervised', model, 'tldr')
    for model in _files('models')
    if model not in '+'.join(NETWORKS) and not model.startswith('judge_')
  ]
  + [
    Choice('judge', f't5_1_1_base+{judge}', 'tldr', 'comparator')
    for judge in _files('models')
    if judge.startswith('judge_')
  ]
  + [
    Choice('online', model, 'tldr', 'reward_model', 'ipo_md')
    for model in ('t5_1_0_base', 'llama_3_2_1b')
  ]
)
OWN_SAMPLES = ('ipo_md', 'nash_ema', 'nash_md', 'rl')
# What a user binds.
GIVEN = {
  'MODEL_DIR': "'/run'",
  'TRAIN_STEPS': '10',
  'BATCH_SIZE': '8',
  'INITIAL_CHECKPOINT_PATH': "'/policy'",
  'JUDGE_CHECKPOINT_PATH': "'/judge'",
}


@dataclasses.dataclass(frozen=True)
class Choice:
  """One gin file of each axis; '+' joins two, ':' names other bindings."""

  run: str
  model: str
  task: str
  judge: str = ''
  algorithm: str = ''
  bindings: tuple[str, ...] = ()
  vocabulary: str | None = None  # of another model than this one
  overlay: str = ''

  def __str__(self) -> str:
    return '-'.join(
      filter(None, map(str, dataclasses.astuple(self)[:5] + self.bindings))
    )

  @property
  def files(self) -> list[str]:
    named = [
      ('runs', self.run),
      *(('models', name) for name in self.model.split('+')),
      ('tasks', self.task.partition(':')[0]),
      ('judges', self.judge),
      ('algorithms', self.algorithm),
      ('', self.overlay),
    ]
    return [str(pathlib.Path('gin', *f)) + '.gin' for f in named if f[1]]

  @property
  def given(self) -> list[str]:
    """What a user of this run binds: what nothing refers to is an error."""
    bound = dict(GIVEN)
    if self.judge == 'indifferent':
      bound['JUDGE_CHECKPOINT_PATH'] = 'None'
    elif not self.judge or self.run == 'judge':
      del bound['JUDGE_CHECKPOINT_PATH']
    if self.run == 'supervised':
      del bound['INITIAL_CHECKPOINT_PATH']
    return [f'{name} = {value}' for name, value in bound.items()]


def large(run, judge='', algorithm='', task='tldr') -> Choice:
  return Choice(run, 't5_1_1_large+judge_t5_1_1_xl', task, judge, algorithm)


PUBLISHED = [
  large('supervised'),
  large('judge', 'comparator'),
  large('judge', 'reward_model'),
  *(
    large('online', 'comparator', algorithm)
    for algorithm in ('dpo', 'ipo', 'ipo_md', 'nash_ema', 'nash_md', 'slic')
  ),
  large('online', 'reward_model', 'rl'),
  large('online', 'comparator', 'ipo_md', task='xsum'),
  *(
    large('offline', 'comparator', algorithm)
    for algorithm in ('dpo', 'ipo', 'slic')
  ),
  *(
    Choice(
      'offline',
      'mistral_7b',
      'ultrafeedback:rewards',
      'likelihood',
      algorithm,
      overlay='lora',
    )
    for algorithm in ('nca', 'info_nca')
  ),
]


def is_valid(choice: Choice) -> bool:
  """Whether the parts go together."""
  rewards = choice.task.endswith(':rewards')
  own = choice.model.startswith('t5_') or choice.task != 'mini_tldr'
  if choice.run == 'supervised':
    return own and not choice.judge + choice.algorithm and not rewards
  if choice.run == 'judge':
    known = choice.judge not in ('', 'indifferent')
    return own and known and not choice.algorithm and not rewards
  if not (own and choice.judge and choice.algorithm):
    return False
  if choice.run == 'online':
    scored = choice.algorithm in OF_REWARDS
    return not rewards and not (scored and choice.judge == 'comparator')
  if choice.algorithm in OF_OWN_SAMPLES:
    return False
  return rewards == (choice.algorithm in OF_REWARDS)


def pairwise(choices: Iterable[Choice], covered: Iterable[Choice]):
  """Some of `choices`, in which any two parts meet that meet in one of all."""
  numbers = {}

  def pairs(choice: Choice) -> int:
    parts = [
      part for part in enumerate(dataclasses.astuple(choice)[:5]) if part[1]
    ]
    bits = 0
    for pair in itertools.combinations(parts, 2):
      bits |= 1 << numbers.setdefault(pair, len(numbers))
    return bits

  open_ = [(pairs(choice), choice) for choice in choices]
  done = functools.reduce(int.__or__, map(pairs, covered), 0)
  chosen = []
  while True:
    bits, best = max(open_, key=lambda c: (c[0] & ~done).bit_count())
    if not bits & ~done:
      return chosen
    done |= bits
    chosen.append(best)


ALL = [
  Choice(*parts)
  for parts in itertools.product(
    ('online', 'offline', 'judge', 'supervised'),
    NETWORKS,
    TASKS,
    ('', *_files('judges')),
    ('', *_files('algorithms')),
  )
]
COVERING = pairwise(filter(is_valid, ALL), PUBLISHED)
OTHER_SIZES = [
  Choice('online', model, 'tldr', 'reward_model', 'ipo_md')
  for model in _files('models')
  if model not in '+'.join(NETWORKS) and not model.startswith('judge_')
] + [
  Choice('judge', f't5_1_1_base+{judge}', 'tldr', 'comparator')
  for judge in _files('models')
  if judge.startswith('judge_')
]
OWN_SAMPLES = 'needs samples of the policy.*gin/runs/online.gin'
INCOMPATIBLE = [
  # A vocabulary that is not the model's.
  (
    Choice('supervised', 'llama_3_2_1b', 'tldr', vocabulary='t5_'),
    'EOS_ID 128001.* ends texts with 1.*VOCABULARY',
  ),
  (
    Choice('supervised', 'mistral_7b', 'tldr', vocabulary='t5_'),
    'has 32100 ids and the model 32000.*VOCABULARY',
  ),
  (
    Choice('supervised', 't5_tiny', 'tldr', vocabulary='t5_'),
    'has 32100 ids and the model 320 ',
  ),
  (
    Choice('online', 'mistral_7b', 'mini_tldr', 'likelihood', 'ipo'),
    'EOS_ID 2.* ends texts with 1.*MIXTURE_OR_TASK_NAME',
  ),
  # An objective that needs what the run does not have.
  *(
    (
      Choice('offline', 't5_tiny', 'mini_tldr', 'likelihood', algorithm),
      OWN_SAMPLES,
    )
    for algorithm in ('rl', 'nash_md', 'nash_ema')
  ),
  *(
    (
      Choice('offline', 't5_tiny', 'mini_tldr', 'likelihood', algorithm),
      f'^{algorithm} needs rewards.*MIXTURE_OR_TASK_NAME',
    )
    for algorithm in ('nca', 'info_nca')
  ),
  *(
    (
      Choice('offline', 't5_tiny', task, 'likelihood', algorithm),
      f'^{algorithm} needs preference.*MIXTURE_OR_TASK_NAME',
    )
    for task in ('ultrafeedback:rewards', 'preference_files:rewards')
    for algorithm in ('dpo', 'ipo', 'slic')
  ),
  *(
    (
      Choice('judge', 't5_tiny', 'ultrafeedback:rewards', judge),
      f'^{step} needs preference.*MIXTURE_OR_TASK_NAME',
    )
    for judge, step in (
      ('comparator', 'comparator_step'),
      ('reward_model', 'reward_step'),
      ('likelihood', 'reward_step'),
    )
  ),
  *(
    (
      Choice('online', 't5_tiny', 'mini_tldr', 'comparator', algorithm),
      'A comparator judges K = 2.*MIXTURE_COEFS.*JUDGE',
    )
    for algorithm in OF_REWARDS
  ),
  *(
    (
      Choice(
        'online',
        't5_tiny',
        'mini_tldr',
        'comparator',
        algorithm,
        ('MIXTURE_COEFS = (0.0, 0.0)',),
      ),
      'needs rewards, but judge .* give only preference.*JUDGE',
    )
    for algorithm in OF_REWARDS
  ),
  *(
    (
      Choice(
        'online',
        't5_tiny',
        'mini_tldr',
        'reward_model',
        algorithm,
        ('PER_TOKEN = True',),
      ),
      'PER_TOKEN = True with LOSS',
    )
    for algorithm in ('rl', 'nash_md', 'nash_ema')
  ),
  # Completions or features that are not there.
  (
    Choice(
      'online',
      't5_tiny',
      'mini_tldr',
      'reward_model',
      'ipo',
      ('MIXTURE_COEFS = (0.0, 0.0, 0.0)',),
    ),
    'preference|MIXTURE_COEFS',
  ),
  (
    Choice(
      'offline',
      't5_tiny',
      'ultrafeedback',
      'likelihood',
      'ipo',
      ("PREFERENCE_TASK = 'ultrafeedback_prompts'",),
    ),
    "ultrafeedback_prompts has no feature 'targets'.*MIXTURE_OR_TASK_NAME",
  ),
]


class Stand(seqio.ByteVocabulary):
  """Bytes and unused ids in place of a model's own vocabulary."""

  def __init__(self, size: int, eos_id: int):
    super().__init__(extra_ids=size - 259)
    self._eos_id = eos_id

  @property
  def eos_id(self) -> int:
    return self._eos_id


def one_example(task: seqio.Task, *, split: str, feature_lengths):
  """In place of `examples.tokenise`: a row of what the task would yield."""
  del feature_lengths
  assert split in task.splits
  features = task.output_features
  k = 0
  if 'targets' in features:
    many = 2 if 'preference' in features else 4
    k = many if features['targets'].rank == 2 else 1

  def ragged(rows):
    return examples.Ragged(
      ids=np.ones(rows, np.int32), starts=np.arange(rows + 1)
    )

  scores = {'preference': np.ones(1, np.float32)}
  scores['rewards'] = np.ones((1, k), np.float32)
  return examples.Examples(
    name=task.name,
    prompts=ragged(1),
    targets=ragged(k) if k else None,
    k=k,
    scores={name: x for name, x in scores.items() if name in features},
  )


@pytest.fixture(autouse=True)
def without_data(monkeypatch):
  monkeypatch.setattr(examples, 'tokenise', one_example)
  gin.clear_config()
  yield
  gin.clear_config()


def resolve(choice: Choice, given: Iterable[str] | None = None) -> dict:
  """The arguments of the run, as gin gives them."""
  bindings = [*(choice.given if given is None else given)]
  bindings += [*TASKS.get(choice.task, ()), *choice.bindings]
  gin.add_config_file_search_path(str(_ROOT))
  gin.parse_config_files_and_bindings(
    choice.files, bindings, finalize_config=False
  )
  main.check_macros(bindings)
  if choice.task not in ('', 'mini_tldr'):
    name = choice.vocabulary or choice.model
    size, eos_id = next(
      v for k, v in VOCABULARIES.items() if name.startswith(k)
    )
    gin.bind_parameter('VOCABULARY/gin.macro.value', Stand(size, eos_id))
  gin.finalize()
  run = gin.query_parameter('RUN/gin.macro.value')
  return gin.get_bindings(run.selector)


def batch_of(dataset: data.Dataset, batch_size: int):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype),
    dataset.rows([(0, 0)]),
  )


def trace(arguments: dict, *, evaluate: bool = False) -> None:
  """What `train.train` does before it compiles, and its traces."""
  model, start = arguments['model'], arguments['start']
  dataset = arguments['dataset']()
  data.check_vocabulary(dataset, model.config.vocab_size)
  optimizer = arguments['optimizer'](model.logical_axes)
  state = jax.eval_shape(
    lambda params: types.TrainState(
      step=jnp.int32(0),
      params=params,
      opt_state=optimizer.init(params),
      ema=params if start.ema else None,
    ),
    model.abstract_params,
  )
  reference = judge = None
  if start.reference_checkpoint_path is not None:
    reference = model.base.abstract_params
  if start.judge_checkpoint_path is not None:
    judge = start.judge_model.abstract_params
  frozen = types.FrozenParams(reference=reference, judge=judge)
  rng = jax.eval_shape(jax.random.key, 0)
  step = functools.partial(arguments['step'], model=model, optimizer=optimizer)
  after, metrics = jax.eval_shape(
    step, state, frozen, batch_of(dataset, arguments['batch_size']), rng
  )
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(after) == shapes(state)
  assert metrics['loss'].shape == ()
  if not evaluate:
    return
  mesh = sharding.make_mesh(arguments['mesh_shape'])
  sharding.params(mesh, model.abstract_params, model.logical_axes)
  evaluation = arguments['evaluation']
  measured = jax.eval_shape(
    functools.partial(evaluation.metrics, model=model),
    state,
    frozen,
    batch_of(evaluation.dataset(), evaluation.batch_size),
    rng,
  )
  assert measured
  assert all(m.shape == () for m in measured.values())


@pytest.mark.parametrize('choice', PUBLISHED, ids=str)
def test_published(choice):
  trace(resolve(choice), evaluate=True)


@pytest.mark.parametrize('choice', COVERING, ids=str)
def test_covering(choice):
  trace(resolve(choice))


@pytest.mark.parametrize('choice', OTHERS, ids=str)
def test_others(choice):
  trace(resolve(choice))


@pytest.mark.parametrize(
  ('choice', 'message'), INCOMPATIBLE, ids=lambda x: str(x)[:60]
)
def test_incompatible(choice, message):
  with pytest.raises(ValueError, match=f'(?s){message}'):
    trace(resolve(choice))


def test_pairs_are_covered():
  """The set has every pair of parts that go together at all."""
  pairs = lambda choices: {
    pair
    for choice in choices
    for pair in itertools.combinations(
      enumerate(dataclasses.astuple(choice)[:5]), 2
    )
    if pair[0][1] and pair[1][1]
  }
  assert pairs(PUBLISHED + COVERING) >= pairs(filter(is_valid, ALL))


@pytest.mark.parametrize('overlay', ['smoke', 'lora'])
def test_overlays(overlay):
  choice = Choice(
    'online', 't5_tiny', 'mini_tldr', 'likelihood', 'ipo_md', overlay=overlay
  )
  arguments = resolve(choice)
  assert isinstance(arguments['model'], lora.Lora) == (overlay == 'lora')
  trace(arguments, evaluate=overlay == 'lora')


@pytest.mark.parametrize('algorithm', _files('algorithms'))
def test_game(algorithm):
  arguments = resolve(
    Choice('game', '', '', algorithm=algorithm), ["MODEL_DIR = '/run'"]
  )
  model = play._model(arguments['game'])
  optimizer = arguments['optimizer'](None)
  params = model.abstract_params
  ema = params if arguments['ema_decay'] is not None else None
  state = jax.eval_shape(
    lambda p: types.TrainState(jnp.int32(0), p, optimizer.init(p), ema=p),
    params,
  ).replace(ema=ema)
  n = len(arguments['game'].preference)
  judge = {
    'preference': jax.ShapeDtypeStruct((1, n, n), np.float32),
    'rewards': jax.ShapeDtypeStruct((1, n), np.float32),
  }
  jax.eval_shape(
    functools.partial(
      arguments['step'],
      model=model,
      judge=play.matrix_judge,
      optimizer=optimizer,
      max_new_tokens=1,
      eos_id=-1,
    ),
    state,
    types.FrozenParams(reference=params, judge=judge),
    types.Tokens(
      ids=jax.ShapeDtypeStruct((4, 1), np.int32),
      mask=jax.ShapeDtypeStruct((4, 1), bool),
    ),
    jax.eval_shape(jax.random.key, 0),
  )


def test_precomputed(tmp_path, monkeypatch):
  """Written by one run, read by the other; neither has to load a reference."""
  path = f"REFERENCE_LOG_PROBS = '{tmp_path}/found.npz'"
  choice = Choice('reference_log_probs', 't5_1_1_large', 'ultrafeedback')
  written = resolve(
    choice, [path, "REFERENCE_CHECKPOINT_PATH = '/policy'", 'BATCH_SIZE = 8']
  )
  dataset = written['dataset']()
  found, _ = jax.eval_shape(
    functools.partial(sequences.log_probs, written['model']),
    written['model'].abstract_params,
    batch_of(dataset, written['batch_size']).completions,
  )
  assert found.shape == (8, 2, 512)
  np.savez(
    written['path'],
    log_prob=np.zeros((1, 2), np.float32),
    examples=reference_log_probs._fingerprint(dataset),
  )
  gin.clear_config()
  choice = dataclasses.replace(
    choice, run='offline_precomputed', algorithm='ipo', bindings=(path,)
  )
  trace(resolve(choice))


def test_side_by_side():
  choice = Choice('side_by_side_mini_tldr', 't5_tiny', 'mini_tldr')
  paths = ('REFERENCE', 'PREFERENCE_MODEL', 'REWARD_MODEL')
  arguments = resolve(
    choice,
    [
      "MODEL_DIR = '/report'",
      "POLICIES = {'supervised': '/supervised', 'ipo': '/ipo'}",
      *(f"{name}_CHECKPOINT_PATH = '/{name}'" for name in paths),
    ],
  )
  model, prompts = arguments['model'], arguments['prompts']
  params = model.abstract_params
  dataset = prompts.dataset()
  data.check_vocabulary(dataset, model.config.vocab_size)
  drawn, *_ = jax.eval_shape(
    functools.partial(
      held_out._sample, model=model, sampler=arguments['sampler'], k=2
    ),
    params,
    params,
    batch_of(dataset, prompts.batch_size),
    jax.eval_shape(jax.random.key, 0),
  )
  for name in ('preference_model', 'reward_model'):
    bound = gin.get_bindings(f'{name}/pairwise.LearnedJudge')
    judged = jax.eval_shape(
      bound['judge'], bound['model'].abstract_params, drawn
    )
    assert judged.preference.shape == (prompts.batch_size,)
  assert arguments['agreement'].dataset().rows([(0, 0)]).preference.shape == (
    1,
  )


@pytest.mark.parametrize(
  ('run', 'given'),
  [
    ('convert', ('INITIAL_CHECKPOINT_PATH', 'OUTPUT_DIR', 'OUTPUT_FORMAT')),
    (
      'export_lora',
      (
        'INITIAL_CHECKPOINT_PATH',
        'REFERENCE_CHECKPOINT_PATH',
        'OUTPUT_DIR',
        'OUTPUT_FORMAT',
      ),
    ),
  ],
)
def test_converters(run, given):
  choice = Choice(run, 't5_1_1_large', '')
  arguments = resolve(choice, [f"{name} = '/x'" for name in given])
  assert jax.tree.leaves(arguments['model'].abstract_params)


def test_infer():
  arguments = resolve(
    Choice('infer', 'mistral_7b', 'tldr'),
    [
      "MODEL_DIR = '/run'",
      "CHECKPOINT_PATH = '/policy'",
      "REFERENCE_CHECKPOINT_PATH = '/reference'",
      'MIXTURE_COEFS = (0.0, 0.5)',
    ],
  )
  model, sampler = arguments['model'], arguments['sampler']
  dataset = arguments['prompts'].task()
  data.check_vocabulary(dataset, model.config.vocab_size)

  def draw(params, prompts, rng):
    context = model.encode(params, prompts)
    return sampling.sample(
      model,
      params,
      params,
      (context, context),
      rng,
      mixture_coefs=arguments['mixture_coefs'],
      **dataclasses.asdict(sampler),
    )

  drawn = jax.eval_shape(
    draw,
    model.abstract_params,
    batch_of(dataset, arguments['batch_size']),
    jax.eval_shape(jax.random.key, 0),
  )
  assert drawn.tokens.ids.shape == (64, 2, 128)


def test_preview():
  name = "MIXTURE_OR_TASK_NAME = 'mini_tldr_pairs'"
  arguments = resolve(Choice('preview', 't5_tiny', 'mini_tldr'), [name])
  assert arguments['dataset']().rows([(0, 0)]).preference.shape == (1,)


def test_every_run_is_here():
  """A new run file needs a test above."""
  here = {
    'convert',
    'export_lora',
    'game',
    'infer',
    'judge',
    'offline',
    'offline_precomputed',
    'online',
    'preview',
    'reference_log_probs',
    'side_by_side',
    'side_by_side_mini_tldr',
    'supervised',
  }
  assert set(_files('runs')) - {'train', 'policy'} == here


@pytest.mark.parametrize(
  'path', sorted(_GIN.rglob('*.gin')), ids=lambda p: f'{p.parent.name}/{p.stem}'
)
def test_header(path):
  """Purpose, what is required; every macro that it names is one."""
  header, _, body = path.read_text().partition('\nfrom __gin__')
  included = re.findall(r"^include '(.*)'", body, re.M)
  assert header.startswith('# ')
  assert 'Required:' in header or any(
    'Required:' in (_ROOT / name).read_text() for name in included
  )
  known = set()
  for other in _GIN.rglob('*.gin'):
    text = re.sub('#.*', '', other.read_text())
    known |= set(re.findall(r'%(\w+)', text))
    known |= set(re.findall(r'^([A-Z]\w+) =', text, re.M))
  listed = re.findall(
    r'(?s)(?:Required|Commonly overridden):(.*?)(?=[A-Z][a-z ]+:|\Z)',
    header.replace('\n#', ' '),
  )
  words = set(re.findall(r'\b[A-Z][A-Z_]{2,}\b', ' '.join(listed)))
  assert words - {'CPU', 'JSON'} <= known
