"""Expected losses by enumeration, and the policies at which they are flat."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
from typing import Any

import numpy as np
from scipy import optimize
from scipy import special

Array = Any  # A numpy or a JAX array.


def expected_loss(
  loss: Callable[..., Array],
  log_ratio: Array,
  feedback: Array,
  samplers: Sequence[Array],
  *,
  matrix: bool = False,
  others: Mapping[str, Array] | None = None,
) -> Array:
  """Averages a loss over all y_1, ..., y_K, each drawn from its own sampler.

  The cost is n^K evaluations of the loss.

  Args:
    loss: Function (log_ratios [N, K], feedback) -> [N], as in `losses`.
    log_ratio: [n] log-ratio of each action. A JAX array can be differentiated.
    feedback: Preference [n, n], which the loss receives as p(y_1 > y_2) [N], or
      rewards [n], which it receives as [N, K].
    samplers: K policies [n].
    matrix: Whether the loss receives the preference as [N, K, K] instead.
    others: Further log-ratios [n] by the names of the parameters of the loss.

  Returns:
    [] expected loss.
  """
  actions = range(len(feedback))
  y = np.array(list(itertools.product(actions, repeat=len(samplers))))
  weights = math.prod(m[y[:, i]] for i, m in enumerate(samplers))
  if matrix:
    known = feedback[y[:, :, None], y[:, None]]
  else:
    known = feedback[y] if feedback.ndim == 1 else feedback[y[:, 0], y[:, 1]]
  others = {name: ratio[y] for name, ratio in (others or {}).items()}
  return (weights * loss(log_ratio[y], known, **others)).sum()


def stationary_point(
  gradient: Callable[[np.ndarray], np.ndarray], start: np.ndarray
) -> np.ndarray:
  """Finds the logits of a policy at which an expected gradient is 0.

  The root is sought of the gradient divided by the policy. That quotient does
  not fade where an action dies out, so a corner of the simplex is found only if
  it is stationary.

  Args:
    gradient: Function from logits [..., V] to the gradient in them.
    start: [..., V] logits at which the search starts.

  Returns:
    [..., V] logits. The last logit of each row is 0, because a constant added
    to a row changes no policy.

  Raises:
    RuntimeError: No stationary point was found. A hinge loss may have a kink
      instead.
  """

  def logits(free):
    rows = free.reshape(*start.shape[:-1], -1)
    return np.concatenate([rows, np.zeros_like(start[..., :1])], axis=-1)

  def field(free):
    x = logits(free)
    policy = special.softmax(x, axis=-1)
    return (gradient(x) / policy)[..., :-1].ravel()

  free = (start[..., :-1] - start[..., -1:]).ravel()
  found = optimize.root(field, free, method='hybr', tol=1e-13)
  if not np.abs(field(found.x)).max() <= 1e-9:
    raise RuntimeError(f'No stationary point was found: {found.message}')
  return logits(found.x)
