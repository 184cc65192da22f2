"""Evaluates a policy during training."""

from collections.abc import Callable
import functools

import jax
from jax.experimental import multihost_utils

from ipo_md import data
from ipo_md import models
from ipo_md.core import averages
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.training import config
from ipo_md.training import watchdog as watchdog_lib

_SAMPLES = 4  # shown as text at an evaluation


def evaluator(
  evaluation: config.Evaluation | None,
  model: models.Model,
  mesh: jax.sharding.Mesh,
  rng: jax.Array,
  watchdog: watchdog_lib.Watchdog,
) -> Callable[..., tuple[dict[str, float], dict[str, str]]]:
  """Makes the function that evaluates a state.

  Args:
    evaluation: What is measured; None measures nothing.
    model: Network of the policy.
    mesh: Mesh of all devices.
    rng: Random key of the samples, the same at each evaluation.
    watchdog: Told of every batch.

  Returns:
    A function (state, frozen) -> the metrics over all examples, each weighted
    as `averages` says, and a few samples as texts by name.

  Raises:
    ValueError: The evaluation split has too few examples.
  """
  if evaluation is None:
    return lambda state, frozen: ({}, {})
  examples = evaluation.dataset()
  if len(examples) < evaluation.examples:
    raise ValueError(
      f'EVAL_EXAMPLES {evaluation.examples} is more than the {len(examples)} '
      'examples of the evaluation split.'
    )
  split = sharding.batch(mesh)
  data.check_size(evaluation.batch_size, split, 'EVAL_BATCH_SIZE')
  measure = jax.jit(functools.partial(evaluation.metrics, model=model))

  def evaluate(state, frozen):
    rows = data.in_order(
      examples,
      batch_size=evaluation.batch_size,
      sharding=split,
      limit=evaluation.examples,
    )
    found = []
    for i, (batch, _) in enumerate(rows):
      found.append(measure(state, frozen, batch, jax.random.fold_in(rng, i)))
      watchdog.alive(f'batch {i + 1} of an evaluation')
    samples = [m.pop('samples', None) for m in found]
    measured = {
      name if name == 'win_rate' else f'eval_{name}': value
      for name, value in averages.pooled(jax.device_get(found)).items()
    }
    return measured, _texts(samples[0], examples.vocabulary)

  return evaluate


def _texts(
  samples: types.Completions | None, vocabulary: types.Vocabulary
) -> dict[str, str]:
  """Decodes a few prompts with their completions, for TensorBoard."""
  if samples is None:
    return {}
  rows = multihost_utils.process_allgather(samples, tiled=True)
  read = lambda tokens, n: vocabulary.decode(
    tokens.ids[n][tokens.mask[n]].tolist()
  )
  first = jax.tree.map(lambda x: x[:, 0], rows.completions)
  # Indented by four, Markdown shows a text as it is.
  return {
    f'sample_{n}': f'    {read(rows.prompts, n)}\n\n    {read(first, n)}'
    for n in range(min(_SAMPLES, len(first.ids)))
  }
