"""LoRA: the policy is the reference plus adapters of low rank.

  y = x W + (alpha / r) (x A) B,   A [in, r], B [r, out]

Paper: https://arxiv.org/abs/2106.09685. W is the array of the reference: policy
and reference share one copy, and W + A B is never materialised. Gradients,
optimizer state and checkpoints hold A and B only. B starts at 0, so the policy
starts as the reference.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from ipo_md.core import types
from ipo_md.models import model as model_lib
from ipo_md.models import sampling_weights

RANK_AXIS = 'lora_rank'  # logical axis of size r in every adapter


class AdaptedKernel(flax.struct.PyTreeNode):
  """The kernel W + scale A B in factored form, for `layers.Dense`."""

  kernel: jax.Array  # [..., in, out]
  a: jax.Array  # [..., in, r]
  b: jax.Array  # [..., r, out]
  scale: float = flax.struct.field(pytree_node=False)

  def __getitem__(self, index: Any) -> 'AdaptedKernel':
    return jax.tree.map(lambda x: x[index], self)

  def astype(self, dtype: Any) -> 'AdaptedKernel':
    return self.replace(
      kernel=self.kernel.astype(dtype),
      a=self.a.astype(dtype),
      b=self.b.astype(dtype),
    )

  def __rmatmul__(self, x: jax.Array) -> jax.Array:
    return x @ self.kernel + (x @ self.a) @ self.b * self.scale


class Lora(model_lib.Model):
  """A model whose parameters are adapters for the kernels of a base model.

  `policy` adds the adapters to `frozen.reference`. The other methods take
  parameters of the base model, with adapters (the policy) or without them (the
  reference).

  Args:
    base: Network of the reference.
    rank: LORA_RANK, the rank r of the adapters.
    alpha: LORA_ALPHA; alpha / r multiplies A B.
    targets: LORA_TARGETS, the names of the modules whose kernels are adapted.

  Raises:
    ValueError: If the rank is below 1, or if a target is not a module of the
      network or belongs to experts.
  """

  def __init__(
    self,
    base: model_lib.Model,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
  ):
    if rank < 1:
      raise ValueError(f'LORA_RANK = {rank} is below 1.')
    self._base = base
    self.log_ratio_dtype = base.log_ratio_dtype
    self.rank, self.alpha, self.targets = rank, alpha, tuple(targets)
    self._axes: dict[str, Any] = flax.traverse_util.flatten_dict(
      base.logical_axes, sep='/'
    )
    self._kernels: dict[str, Any] = {
      path: leaf
      for path, leaf in flax.traverse_util.flatten_dict(
        base.abstract_params, sep='/'
      ).items()
      if path.endswith('/kernel') and path.split('/')[-2] in self.targets
    }
    self._check(base)

  def _check(self, base: model_lib.Model) -> None:
    modules = {p.split('/')[-2] for p in self._axes if p.endswith('/kernel')}
    # `layers.Dense` multiplies neither heads nor the kernels of experts.
    modules -= {'logits_dense', 'reward_head'}
    modules -= {
      p.split('/')[-2] for p, a in self._axes.items() if 'expert' in a
    }
    unknown = sorted(set(self.targets) - modules)
    if unknown or not self.targets:
      raise ValueError(
        f'LORA_TARGETS = {self.targets} must name modules of the network of '
        f'{type(base.config).__name__}, among {sorted(modules)}.'
      )

  @property
  def scale(self) -> float:
    """The factor alpha / r of A B."""
    return self.alpha / self.rank

  @property
  def base(self) -> model_lib.Model:
    return self._base

  def in_dtype(self, dtype: str) -> 'Lora':
    return self._on(self._base.in_dtype(dtype))

  def without_reward_head(self) -> 'Lora':
    return self._on(self._base.without_reward_head())

  def _on(self, base: model_lib.Model) -> 'Lora':
    """Returns the same adapters on another model."""
    return Lora(base, rank=self.rank, alpha=self.alpha, targets=self.targets)

  @property
  def config(self) -> Any:
    return self._base.config

  @property
  def abstract_params(self) -> types.Params:
    return jax.eval_shape(self.init, jax.random.key(0))

  @property
  def logical_axes(self) -> Any:
    axes = {}
    for path in self._kernels:
      *lead, rows, columns = self._axes[path]
      axes[f'{path}/a'] = (*lead, rows, RANK_AXIS)
      axes[f'{path}/b'] = (*lead, RANK_AXIS, columns)
    return flax.traverse_util.unflatten_dict(axes, sep='/')

  def init(self, rng: jax.Array) -> types.Params:
    """Makes fresh adapters {..., 'kernel': {'a', 'b'}} in float32.

    A is uniform in +- 1 / sqrt(in), as in the PEFT library, and B is 0.

    Args:
      rng: Key, consumed.
    """
    adapters = {}
    for i, (path, leaf) in enumerate(self._kernels.items()):
      *lead, rows, columns = leaf.shape
      bound = 1 / math.sqrt(rows)
      adapters[f'{path}/a'] = jax.random.uniform(
        jax.random.fold_in(rng, i),
        (*lead, rows, self.rank),
        minval=-bound,
        maxval=bound,
      )
      adapters[f'{path}/b'] = jnp.zeros((*lead, self.rank, columns))
    return flax.traverse_util.unflatten_dict(adapters, sep='/')

  def policy(
    self, params: types.Params, frozen: types.FrozenParams
  ) -> types.Params:
    """Adds the adapters `params` to the reference, without copying it.

    Raises:
      ValueError: If there is no reference.
    """
    if frozen.reference is None:
      raise ValueError(
        'LoRA adapts the reference: set REFERENCE_CHECKPOINT_PATH.'
      )
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(
      frozen.reference, sep='/'
    )
    adapters: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep='/')
    for path in self._kernels:
      flat[path] = AdaptedKernel(
        kernel=flat[path],
        a=adapters[f'{path}/a'],
        b=adapters[f'{path}/b'],
        scale=self.scale,
      )
    return flax.traverse_util.unflatten_dict(flat, sep='/')

  def _decode_leaf(self, axes: tuple[str, ...], leaf: Any, int8: bool) -> Any:
    form = functools.partial(
      sampling_weights.for_sampling, config=self.config, int8=int8
    )
    if not isinstance(leaf, AdaptedKernel):
      return form(leaf, axes)
    *lead, rows, columns = axes
    return leaf.replace(
      kernel=form(leaf.kernel, axes),
      a=form(leaf.a, (*lead, rows, RANK_AXIS)),
      b=form(leaf.b, (*lead, RANK_AXIS, columns)),
    )

  def bind(self, params: types.Params) -> Any:
    return self._base.bind(params)

  def init_cache(self, context: types.Context, k: int, length: int) -> Any:
    return self._base.init_cache(context, k, length)
