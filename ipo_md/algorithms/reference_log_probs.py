"""Log-probabilities of a data set under the reference, computed once.

An offline run on them needs neither the memory nor the time of a reference.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import hashlib

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from ipo_md import checkpoints
from ipo_md import data
from ipo_md import models
from ipo_md import sampling
from ipo_md.core import paths
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.core import types


def compute(
  *,
  path: str,
  reference_checkpoint_path: str,
  model: models.Model,
  dataset: Callable[[], data.Dataset],
  batch_size: int,
  mesh_shape: Sequence[int],
) -> None:
  """Writes log pi_ref(y_k | x) of every completion of a data set.

  Args:
    path: REFERENCE_LOG_PROBS, the .npz file to write.
    reference_checkpoint_path: REFERENCE_CHECKPOINT_PATH, the reference.
    model: Network of the reference.
    dataset: Completions, as the offline run reads them.
    batch_size: BATCH_SIZE, prompts at a time over all hosts.
    mesh_shape: MESH_SHAPE, sizes of the mesh axes.
  """
  path = paths.absolute(path, 'REFERENCE_LOG_PROBS')
  mesh = sharding.make_mesh(mesh_shape)
  examples = dataset()
  progress.say(progress.counted(examples.counts))
  data.check_vocabulary(examples, model.config.vocab_size)
  with jax.set_mesh(mesh):
    params = checkpoints.load_params(
      reference_checkpoint_path,
      model,
      mesh,
      name='REFERENCE_CHECKPOINT_PATH',
      vocabulary=examples.vocabulary,
    )
    found = log_probs(params, model, examples, batch_size=batch_size, mesh=mesh)
  if jax.process_index() == 0:
    unfinished = epath.Path(f'{path}.unfinished')
    with unfinished.open('wb') as file:
      np.savez(file, log_prob=found, examples=_fingerprint(examples))
    unfinished.replace(path)
  progress.say(
    f'{path}: {found.shape[0]:,} prompts of {found.shape[1]} completions'
  )


def log_probs(
  params: types.Params,
  model: models.Model,
  dataset: data.Dataset,
  *,
  batch_size: int,
  mesh: jax.sharding.Mesh,
) -> np.ndarray:
  """Returns [N, K] float32 sums over tokens, in the order of the data set."""

  @jax.jit
  def measure(params, batch):
    return sampling.log_prob(model, params, batch.completions)

  rows = data.in_order(
    dataset, batch_size=batch_size, sharding=sharding.batch(mesh)
  )
  total = -(-len(dataset) // batch_size)
  found = [
    multihost_utils.process_allgather(measure(params, batch), tiled=True)
    for batch, _ in progress.progress(rows, total, 'scoring')
  ]
  return np.concatenate(found)[: len(dataset)]


def attached(*, path: str, dataset: Callable[[], data.Dataset]) -> data.Dataset:
  """Loads a data set with the log-probabilities that `compute` wrote for it.

  Args:
    path: REFERENCE_LOG_PROBS, the .npz file to read.
    dataset: The data set that they were computed on.

  Raises:
    ValueError: They belong to other examples, lengths or another prompt format.
  """
  path = paths.absolute(path, 'REFERENCE_LOG_PROBS')
  if not epath.Path(path).exists():
    raise ValueError(
      f'There is no file {path} (REFERENCE_LOG_PROBS). '
      'gin/runs/reference_log_probs.gin writes it.'
    )
  loaded = dataset()
  with epath.Path(path).open('rb') as file:
    stored = np.load(file)
    fingerprint, values = str(stored['examples']), stored['log_prob']
  if fingerprint != _fingerprint(loaded):
    raise ValueError(
      f'REFERENCE_LOG_PROBS {path} was computed on other tokens: another task, '
      'split, vocabulary, TASK_FEATURE_LENGTHS or prompt format.'
    )
  parts = np.split(values, np.cumsum([len(e) for e in loaded.examples])[:-1])
  return dataclasses.replace(
    loaded,
    examples=tuple(
      dataclasses.replace(
        examples, scores=dict(examples.scores) | {'reference_log_prob': part}
      )
      for examples, part in zip(loaded.examples, parts, strict=True)
    ),
  )


def _fingerprint(dataset: data.Dataset) -> str:
  """Hashes everything but the parameters that log-probabilities depend on."""
  prompt_format = dataset.prompt_format
  digest = hashlib.sha256(
    repr(
      (
        sorted(dataset.lengths.items()),
        prompt_format.opening,
        prompt_format.ending,
        prompt_format.cut_prompts,
      )
    ).encode()
  )
  for examples in dataset.examples:
    for ragged in (examples.prompts, examples.completions, examples.rendered):
      if ragged is None:
        continue
      digest.update(np.ascontiguousarray(ragged.ids).data)
      digest.update(np.ascontiguousarray(ragged.starts).data)
  return digest.hexdigest()
