"""A mixture of experts in place of a dense feed-forward layer."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from ipo_md.core import sharding
from ipo_md.models import decoder_config
from ipo_md.models import grouped_matmul
from ipo_md.models import layers


class Experts(nnx.Module):
  """Mixture of experts, none of whose tokens are dropped.

    y = sum over the chosen e of softmax(router)_e / (sum of chosen) mlp_e(x)

  Each device sorts the rows of its own prompts by expert and multiplies group
  by group, so the cost is that of the experts that a token uses. The loss that
  spreads the tokens is Switch's, https://arxiv.org/abs/2101.03961 eq. 4, for
  several choices:

    X sum_e (choices of e / tokens) (mean probability of e)

  over the tokens that count, with a minimum of num_experts_per_token at an even
  spread. The mean over the layers is taken of this product, where transformers
  multiplies the means.
  """

  def __init__(self, rngs: nnx.Rngs, cfg: decoder_config.DecoderOnlyConfig):
    lead, lead_axes = (cfg.num_layers, cfg.num_experts), ('layers', 'expert')
    self.config = cfg
    self.router = layers.Dense(
      rngs,
      (cfg.num_layers, cfg.emb_dim, cfg.num_experts),
      ('layers', 'embed', 'unmodeled'),
    )
    self.experts = layers.Mlp(
      rngs,
      lead,
      lead_axes,
      emb_dim=cfg.emb_dim,
      mlp_dim=cfg.mlp_dim,
      activations=cfg.mlp_activations,
    )

  def __call__(
    self, x: jax.Array, dtype: Any, mask: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """[B, ..., E] -> [B, ..., E], loss over the tokens of mask [B, ...]."""
    cfg = self.config
    experts, choices = cfg.num_experts, cfg.num_experts_per_token
    probabilities = jax.nn.softmax(self.router(x, jnp.float32))
    weights, chosen = jax.lax.top_k(probabilities, choices)
    weights /= jnp.sum(weights, axis=-1, keepdims=True)
    graphdef, params = nnx.split(self.experts)
    params = jax.tree.map(lambda p: p.astype(dtype), params)  # then gathered

    def combine(params, x, weights, chosen):
      return self._combine(nnx.merge(graphdef, params), x, weights, chosen)

    y = sharding.map_batch(
      combine, params, (x.astype(dtype), weights.astype(dtype), chosen)
    )
    loss = self._loss(
      probabilities.reshape(-1, experts), chosen.reshape(-1, choices), mask
    )
    return y, loss

  def _combine(
    self, mlps: layers.Mlp, x: jax.Array, weights: jax.Array, chosen: jax.Array
  ) -> jax.Array:
    """[..., E], [..., choices] twice -> [..., E]: the experts' weighted sum."""
    cfg = self.config
    choices = chosen.shape[-1]
    order = jnp.argsort(chosen.reshape(-1))
    inverse = jnp.argsort(order)
    of_expert = jax.nn.one_hot(
      chosen.reshape(-1), cfg.num_experts, dtype=jnp.int32
    )
    sizes = jnp.sum(of_expert, axis=0)
    rows = jnp.repeat(x.reshape(-1, cfg.emb_dim), choices, axis=0)
    rows = grouped_matmul.permute(rows, order, inverse)
    product = lambda dense, rows: grouped_matmul.matmul(
      rows, dense.kernel[...], sizes
    )
    rows = mlps(rows, x.dtype, product=product)
    rows = grouped_matmul.permute(rows, inverse, order)
    rows = rows.reshape(*chosen.shape, cfg.emb_dim)
    return jnp.sum(rows * weights[..., None], axis=-2)

  def _loss(self, probabilities, chosen, mask) -> jax.Array:
    """[N, X] probabilities, [N, choices] of N tokens, [N] or None -> []."""
    experts = self.config.num_experts
    counted = jnp.ones(len(chosen), bool) if mask is None else mask.reshape(-1)
    tokens = jnp.maximum(jnp.sum(counted), 1)
    mean = lambda x: jnp.sum(x, axis=0, where=counted[:, None]) / tokens
    choices = jnp.sum(jax.nn.one_hot(chosen, experts), axis=1)
    return experts * jnp.sum(mean(choices) * mean(probabilities))
