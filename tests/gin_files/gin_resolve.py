"""Resolves gin files and traces their runs, without data or weights.

`jax.eval_shape` traces the step and the evaluation of a run, so nothing is
compiled or computed.
"""

from collections.abc import Iterable
import dataclasses
import functools
import pathlib
import re

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from ipo_md import judges
from ipo_md.algorithms import needs
from ipo_md.core import gin_config
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import examples
from ipo_md.data import splits

ROOT = pathlib.Path(__file__).parents[2]

# The first words of the header of a file that is only ever included.
_SHARED = '# Settings shared by '


def files(folder: str) -> list[str]:
  """Returns the sorted names of the files of an axis that run on the device.

  Files that are shared, such as gin/runs/train.gin, are left out, and so are
  those with a judge on the host, whose two programs cannot be traced as one
  step: host_feedback_test runs them.
  """
  names = [path.stem for path in complete_files(ROOT / 'gin' / folder)]
  if folder == 'judges':
    return [n for n in names if judge(n).runs_on == 'device']
  if folder == 'algorithms':
    return [n for n in names if not _has_program(n)]
  return names


@functools.cache
def judge(name: str) -> judges.Declaration:
  """Returns what the judge of gin/judges/NAME.gin declares."""
  return judges.declaration_of(_bound(f'gin/judges/{name}.gin', 'JUDGE'))


@functools.cache
def objective(name: str) -> needs.Needs:
  """Returns what the loss of gin/algorithms/NAME.gin declares."""
  return needs.of(_bound(f'gin/algorithms/{name}.gin', 'LOSS'))


def _bound(path: str, macro: str):
  """Returns the function that a gin file binds to a macro."""
  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_file(path)
  found = gin.query_parameter(f'{macro}/gin.macro.value')
  gin.clear_config()
  return found.scoped_configurable_fn


@functools.cache
def _has_program(name: str) -> bool:
  """Returns whether an algorithm compiles its step in a way of its own."""
  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_file(f'gin/algorithms/{name}.gin')
  try:
    gin.query_parameter('training.train.program')
  except ValueError:
    return False
  finally:
    gin.clear_config()
  return True


def complete_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the gin files under a folder that a user may name, sorted."""
  return [
    path
    for path in sorted(folder.rglob('*.gin'))
    if not path.read_text().startswith(_SHARED)
  ]


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
# The bindings of a user.
_GIVEN = {
  'MODEL_DIR': "'/run'",
  'TRAIN_STEPS': '10',
  'BATCH_SIZE': '8',
  'INITIAL_CHECKPOINT_PATH': "'/policy'",
  'JUDGE_CHECKPOINT_PATH': "'/judge'",
}


@dataclasses.dataclass(frozen=True)
class Choice:
  """One gin file of each axis.

  '+' joins two files of an axis, and ':' names a variant with other bindings.
  """

  run: str
  model: str
  task: str
  judge: str = ''
  algorithm: str = ''
  bindings: tuple[str, ...] = ()
  vocabulary: str | None = None  # another model's, instead of this model's
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
    """The bindings of this run; a binding that is not used is an error."""
    bound = dict(_GIVEN)
    if self.judge and not judge(self.judge).has_params:
      bound['JUDGE_CHECKPOINT_PATH'] = 'None'
    elif not self.judge or self.run == 'judge':
      del bound['JUDGE_CHECKPOINT_PATH']
    if self.run == 'supervised':
      del bound['INITIAL_CHECKPOINT_PATH']
    return [f'{name} = {value}' for name, value in bound.items()]


class PlaceholderVocabulary(seqio.ByteVocabulary):
  """A byte vocabulary with the size and the EOS id of another one."""

  def __init__(self, size: int, eos_id: int):
    super().__init__(extra_ids=size - 259)
    self._eos_id = eos_id

  @property
  def eos_id(self) -> int:
    return self._eos_id


def one_example(task: seqio.Task, *, split: str, feature_lengths, chat=None):
  """Replaces `data.tokenise` and returns one example of a task."""
  del feature_lengths, chat
  splits.read(split, place=f'Task {task.name}', names=task.splits)
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
  """Reads no data in a test and clears the gin configuration after it."""
  monkeypatch.setattr(examples, 'tokenise', one_example)
  gin.clear_config()
  yield
  gin.clear_config()


def resolve(choice: Choice, given: Iterable[str] | None = None) -> dict:
  """Returns the arguments that gin binds to the function of a run.

  Args:
    choice: The gin files of the run.
    given: Bindings to use instead of `choice.given`.
  """
  bindings = [*(choice.given if given is None else given)]
  bindings += [*TASKS.get(choice.task, ()), *choice.bindings]
  vocabulary = choice.vocabulary or choice.model
  if choice.task in ('', 'mini_tldr', 'mini_tldr_cyclic', 'arithmetic'):
    vocabulary = None
  return resolve_files(choice.files, bindings, vocabulary=vocabulary)


def resolve_files(
  paths: Iterable[str], bindings: Iterable[str], *, vocabulary: str | None
) -> dict:
  """Returns the arguments that gin binds to the function of a run.

  Args:
    paths: The gin files, in order.
    bindings: The bindings of the user.
    vocabulary: The name of a model. A placeholder for its vocabulary is bound
      to VOCABULARY. None leaves VOCABULARY unchanged.
  """
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_files_and_bindings(paths, bindings, finalize_config=False)
  gin_config.check_macros(bindings)
  if vocabulary is not None:
    gin.bind_parameter(
      'VOCABULARY/gin.macro.value',
      PlaceholderVocabulary(*_vocabulary_of(vocabulary)),
    )
  gin.finalize()
  run = gin.query_parameter('RUN/gin.macro.value')
  return gin.get_bindings(run.selector)


def _vocabulary_of(model: str) -> tuple[int, int]:
  """Returns the vocabulary size and the EOS id of a model, or of a prefix.

  T5's vocabulary has fewer ids than its embedding has rows.
  """
  if model.startswith('t5_') and model != 't5_tiny':
    return 32_100, 1
  lines = _lines(ROOT / 'gin' / 'models' / f'{model.partition("+")[0]}.gin')
  size = re.findall(r'^models\.\w+\.vocab_size = (\d+)', lines, re.M)
  eos_id = re.findall(r'^EOS_ID = (\d+)', lines, re.M)
  return int(size[-1]), int(eos_id[-1])


def _lines(path: pathlib.Path) -> str:
  """Returns a gin file with the files that it includes put in their place."""
  return re.sub(
    r"^include '(.+)'$",
    lambda match: _lines(ROOT / match[1]),
    path.read_text(),
    flags=re.M,
  )


def batch_of(dataset: dataset_lib.Dataset, batch_size: int):
  """Returns the shapes and dtypes of a batch of a data set."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype),
    dataset.rows([(0, 0)]),
  )


def trace(arguments: dict, *, evaluate: bool = False) -> None:
  """Traces the step of a training run, as `training.train` would compile it.

  Args:
    arguments: The arguments of `training.train`.
    evaluate: Whether to trace the evaluation as well.
  """
  model, start = arguments['model'], arguments['start']
  dataset = arguments['dataset']()
  dataset_lib.check_vocabulary(dataset, model.config.vocab_size)
  optimizer = arguments['optimizer'](model.logical_axes)
  state = jax.eval_shape(
    lambda params: types.TrainState(
      step=jnp.int32(0),
      params=params,
      opt_state=optimizer.init(params),
      players={} if start.players is None else start.players.first(params),
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
  assert metrics['loss'].total.shape == ()
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
  assert all(x.shape == () for x in jax.tree.leaves(measured))
