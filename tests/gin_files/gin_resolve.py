"""What gin files resolve to, by `jax.eval_shape`: no data, no weights."""

from collections.abc import Iterable
import dataclasses
import functools
import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from ipo_md.core import gin_config
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import examples

ROOT = pathlib.Path(__file__).parents[2]


# Over the host, not of one program: a run of oaif_test.
_ON_HOST = ('http', 'oaif')


def files(folder: str) -> list[str]:
  """Names of the gin files of an axis, of those that run on the device."""
  names = [path.stem for path in (ROOT / 'gin' / folder).glob('*.gin')]
  return sorted(name for name in names if name not in _ON_HOST)


# Vocabulary and EOS of a model, by the start of its file's name.
_VOCABULARIES = {
  't5_tiny': (320, 1),
  't5_': (32_100, 1),
  'decoder_tiny': (320, 1),
  'mistral': (32_000, 2),
  'mixtral': (32_000, 2),
  'llama': (128_256, 128_001),
}
_PREFERENCE_FILES = (
  "TRAIN_FILE = '/train.jsonl'",
  "VALIDATION_FILE = '/validation.jsonl'",
  "TASK_FEATURE_LENGTHS = {'inputs': 512, 'targets': 512}",
)
TASKS = dict.fromkeys(files('tasks'), ()) | {
  'preference_files': _PREFERENCE_FILES,
  'preference_files:rewards': (
    *_PREFERENCE_FILES,
    'PREFERENCE_TASK = @preference_files.rewards()',
  ),
  'ultrafeedback:rewards': ("PREFERENCE_TASK = 'ultrafeedback_rewards'",),
}
# What a user binds.
_GIVEN = {
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
    bound = dict(_GIVEN)
    if self.judge == 'indifferent':
      bound['JUDGE_CHECKPOINT_PATH'] = 'None'
    elif not self.judge or self.run == 'judge':
      del bound['JUDGE_CHECKPOINT_PATH']
    if self.run == 'supervised':
      del bound['INITIAL_CHECKPOINT_PATH']
    return [f'{name} = {value}' for name, value in bound.items()]


class Stand(seqio.ByteVocabulary):
  """Bytes and unused ids in place of a model's own vocabulary."""

  def __init__(self, size: int, eos_id: int):
    super().__init__(extra_ids=size - 259)
    self._eos_id = eos_id

  @property
  def eos_id(self) -> int:
    return self._eos_id


def one_example(task: seqio.Task, *, split: str, feature_lengths):
  """In place of `data.tokenise`: a row of what the task would yield."""
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
  """For the test modules: no data is read, no binding stays."""
  monkeypatch.setattr(examples, 'tokenise', one_example)
  gin.clear_config()
  yield
  gin.clear_config()


def resolve(choice: Choice, given: Iterable[str] | None = None) -> dict:
  """The arguments of the run, as gin gives them."""
  bindings = [*(choice.given if given is None else given)]
  bindings += [*TASKS.get(choice.task, ()), *choice.bindings]
  vocabulary = choice.vocabulary or choice.model
  if choice.task in ('', 'mini_tldr'):
    vocabulary = None
  return resolve_files(choice.files, bindings, vocabulary=vocabulary)


def resolve_files(
  paths: Iterable[str], bindings: Iterable[str], *, vocabulary: str | None
) -> dict:
  """The same, with VOCABULARY stood in for by one like that of a model."""
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_files_and_bindings(paths, bindings, finalize_config=False)
  gin_config.check_macros(bindings)
  if vocabulary is not None:
    size, eos_id = next(
      v for k, v in _VOCABULARIES.items() if vocabulary.startswith(k)
    )
    gin.bind_parameter('VOCABULARY/gin.macro.value', Stand(size, eos_id))
  gin.finalize()
  run = gin.query_parameter('RUN/gin.macro.value')
  return gin.get_bindings(run.selector)


def batch_of(dataset: dataset_lib.Dataset, batch_size: int):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype),
    dataset.rows([(0, 0)]),
  )


def trace(arguments: dict, *, evaluate: bool = False) -> None:
  """What `training.train` does before it compiles, and its traces."""
  model, start = arguments['model'], arguments['start']
  dataset = arguments['dataset']()
  dataset_lib.check_vocabulary(dataset, model.config.vocab_size)
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
  evaluation = arguments['evaluation']
  if not evaluate or evaluation is None:
    return
  mesh = sharding.make_mesh(arguments['mesh_shape'])
  sharding.params(mesh, model.abstract_params, model.logical_axes)
  measured = jax.eval_shape(
    functools.partial(evaluation.metrics, model=model),
    state,
    frozen,
    batch_of(evaluation.dataset(), evaluation.batch_size),
    rng,
  )
  measured.pop('samples', None)
  assert measured
  assert all(m.shape == () for m in measured.values())
