"""Metrics that say what they are an average of.

A step or an evaluation measures one batch, or one part of it. What a run
reports covers many, so a metric keeps its total and its weight until the end:

  Mean(total=12.0, weight=4), Mean(total=1.0, weight=1)  ->  13 / 5

The mean of the two means would be 2. With totals and weights, metrics do not
depend on MICROBATCHES, EVAL_BATCH_SIZE or LOG_PERIOD. A metric that is a plain
number has the same weight in every batch.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Mean:
  """A metric that is a mean, or the exponential of one.

  float(averages.Mean(total=6.0, weight=4))  # 1.5
  """

  total: Any  # [] sum of the measured values, each times its weight
  weight: Any  # [] sum of the weights, such as a number of tokens
  # Whether the metric is exp(total / weight), as a perplexity is.
  exponential: bool = flax.struct.field(pytree_node=False, default=False)

  def __float__(self) -> float:
    """Returns the mean in float64; NaN if nothing was measured."""
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
      mean = np.float64(self.total) / np.float64(self.weight)
      return float(np.exp(mean) if self.exponential else mean)


@flax.struct.dataclass
class Sum:
  """A metric that is a sum over examples, such as a number of tokens."""

  total: Any  # []

  def __float__(self) -> float:
    return float(self.total)


def mean(values: jax.Array, where: jax.Array | None = None) -> Mean:
  """Averages an array, each entry with the same weight.

    averages.mean(rewards, where=completion_mask)

  Args:
    values: [...] measured values.
    where: [...] whether an entry counts. None counts all.
  """
  if where is None:
    return Mean(total=jnp.sum(values), weight=values.size)
  return Mean(total=jnp.sum(values, where=where), weight=jnp.sum(where))


def over_parts(
  metrics: Mapping[str, Any], weights: jax.Array
) -> dict[str, Any]:
  """Reduces the metrics of the parts of a batch to those of the batch.

  Args:
    metrics: Name -> metric whose arrays have shape [parts].
    weights: [parts] weight of each part for plain numbers, which sum to 1.
  """

  def reduced(metric):
    if isinstance(metric, Mean | Sum):
      return jax.tree.map(lambda x: jnp.sum(x, axis=0), metric)
    return jnp.sum(weights * metric)

  return {name: reduced(metric) for name, metric in metrics.items()}


def pooled(batches: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Reduces the metrics of batches, which are on the host, to numbers.

    averages.pooled(jax.device_get(found))['loss']

  Args:
    batches: Metrics of one batch or more, all of the same names.
  """

  def reduced(*metrics):
    if isinstance(metrics[0], Mean | Sum):
      total = lambda *x: np.sum(np.asarray(x, np.float64))
      return float(jax.tree.map(total, *metrics))
    return float(np.mean(metrics))

  return {
    name: reduced(*(batch[name] for batch in batches)) for name in batches[0]
  }


def values(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Returns the metrics of one batch as numbers."""
  return pooled([jax.device_get(dict(metrics))])
