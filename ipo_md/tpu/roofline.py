"""Lower bounds on the time of each phase of a step on a slice.

  bound = max(FLOPs / matmul rate, bytes / HBM bandwidth)     of one chip

FLOPs are those of the model (`flops`), spread evenly over the chips. Bytes
include the weights that a phase reads, contexts and caches while sampling, and
parameters, gradients and optimizer state in the update.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ipo_md import models
from ipo_md.core import tpu_slices
from ipo_md.core import types
from ipo_md.tpu import flops as flops_lib


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of one phase: FLOPs of all chips, and bytes that each reads."""

  flops: float = 0.0
  bytes: float = 0.0

  def __add__(self, other: 'Work') -> 'Work':
    return Work(self.flops + other.flops, self.bytes + other.bytes)

  def seconds(self, chip: tpu_slices.Chip, number: int) -> float:
    """Returns the least time of the work on a number of chips."""
    return max(
      self.flops / number / chip.flops, self.bytes / chip.hbm_bandwidth
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Everything that the bounds depend on.

  Attributes:
    model: Model that is trained.
    judge_model: Model of the judge. None means that it reads nothing.
    judge: Judge (params, completions, model=) -> feedback, or None.
    batch: Abstract batch of the step.
    state_bytes: Bytes of the training state on one chip.
    mesh: Mesh of all chips.
    mixture_coefs: Coefficients of an online step. None means no sampling.
    max_new_tokens: Length of the completions of an online step.
    reads_reference: Whether the step needs a forward pass of the reference
      besides the one in the sampling loop.
    int8_sampling: Whether the sampling loop reads weights of one byte. Weights
      of experts and of a tied head count as one byte, too.
  """

  model: models.Model
  judge_model: models.Model | None
  judge: Callable[..., Any] | None
  batch: Any
  state_bytes: float
  mesh: jax.sharding.Mesh
  mixture_coefs: tuple[float, ...] | None
  max_new_tokens: int
  reads_reference: bool
  int8_sampling: bool

  @property
  def split(self) -> int:
    """Number of parts of the weights of a product while it is computed."""
    return self.mesh.shape['tensor'] * self.mesh.shape['expert']


def phases(run: Run) -> Mapping[str, Work]:
  """Returns the minimal work of each phase of `hlo.PHASES`.

  The work of 'decode' covers all tokens.
  """
  if run.mixture_coefs is None and run.judge is not None:
    read = _judging(run, run.batch.completions)
    return {
      'log_probs': read,
      'backward': Work(2 * read.flops, 2 * read.bytes),
      'update': Work(bytes=2 * run.state_bytes),
    }
  net = flops_lib.network(run.model)
  item = jnp.dtype(run.model.base.config.dtype).itemsize
  if run.mixture_coefs is None:
    completions = run.batch.completions
    b, p = completions.prompts.ids.shape
    k, t = completions.completions.ids.shape[1:]
  else:
    b, p = run.batch.ids.shape
    k, t = len(run.mixture_coefs), run.max_new_tokens
  prompts = Work(net.encode(b, p), item * net.prompt_weights / run.split)
  completions = Work(
    net.decode(b * k, t, p),
    item * (net.stored_weights + net.head_weights) / run.split,
  )
  reads = [completions] * (2 if run.reads_reference else 1)
  work = {}
  if run.mixture_coefs is None:
    reads += [prompts] * len(reads)
  else:
    # Policy and reference each read the prompts once for samples and loss.
    work = _sampling(run, run.mixture_coefs, net, item) | {
      'encode': prompts + prompts
    }
  # With adapters, no gradients of the base model's weights are computed.
  factor = 1 if isinstance(run.model, models.Lora) else 2
  both = prompts + completions
  return work | {
    'log_probs': sum(reads, Work()),
    'backward': Work(factor * both.flops, factor * both.bytes),
    'update': Work(bytes=2 * run.state_bytes),
  }


def _sampling(
  run: Run, coefs: tuple[float, ...], net: flops_lib.Network, item: int
) -> dict[str, Work]:
  """Returns the work of the sampling loop and of the judge."""
  (b, p), k, t = run.batch.ids.shape, len(coefs), run.max_new_tokens
  rows = run.mesh.shape['data'] * run.mesh.shape['fsdp']
  decode = Work()
  players = [k, sum(coef > 0 for coef in coefs)]
  for slots in filter(None, players):
    read = net.token_bytes(
      b / rows,
      b * slots / rows,
      t,
      p,
      item=item,
      weight_item=1 if run.int8_sampling else item,
    )
    decode += Work(net.decode(b * slots, t, p), t * read / run.split)
  completions = types.Completions(
    prompts=run.batch,
    completions=types.Tokens(
      ids=types.as_leaf(jax.ShapeDtypeStruct((b, k, t), jnp.int32)),
      mask=types.as_leaf(jax.ShapeDtypeStruct((b, k, t), bool)),
    ),
  )
  return {'decode': decode, 'judge': _judging(run, completions)}


def _judging(run: Run, completions: types.Completions) -> Work:
  """Returns the work of one forward pass of the judge."""
  if run.judge is None or run.judge_model is None:
    return Work()
  judge, recorder = run.judge, flops_lib.Recorder(run.judge_model)
  jax.eval_shape(
    lambda params, read: judge(params, read, model=recorder),
    run.judge_model.abstract_params,
    completions,
  )
  item = jnp.dtype(run.judge_model.config.dtype).itemsize
  size = flops_lib.count(run.judge_model.abstract_params)
  return Work(recorder.flops, item * size / run.split)
