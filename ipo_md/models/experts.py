"""A mixture of experts, which replaces a dense feed-forward layer."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from ipo_md.core import partitioning
from ipo_md.models import decoder_config
from ipo_md.models import grouped_matmul
from ipo_md.models import layers


class Experts(nnx.Module):
  """A mixture of experts that drops no tokens.

    y = sum_e p_e mlp_e(x) / sum_e p_e,   p = softmax(router(x))

  where both sums run over the experts that the token chooses. Without
  `experts_sum_to_one` there is no denominator.

  Each device sorts the rows of its own prompts by expert and multiplies one
  group at a time, so a token costs as much as the experts that it uses. The
  load-balancing loss is equation 4 of Switch Transformer
  (https://arxiv.org/abs/2101.03961), extended to several choices per token:

    X sum_e (choices of e / tokens) (mean probability of e)

  where X is the number of experts and masked tokens do not count. The minimum,
  num_experts_per_token, is reached at an even spread. This loss is averaged
  over the layers, whereas transformers averages both factors first.
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
    """Applies the experts to activations.

    Args:
      x: [B, ..., E] activations.
      dtype: Type of the experts' activations.
      mask: [B, ...] bool, tokens that the loss counts. None counts all.

    Returns:
      [B, ..., E] activations and the load-balancing loss.
    """
    cfg = self.config
    experts, choices = cfg.num_experts, cfg.num_experts_per_token
    probabilities = jax.nn.softmax(self.router(x, jnp.float32))
    weights, chosen = jax.lax.top_k(probabilities, choices)
    if cfg.experts_sum_to_one:
      weights /= jnp.sum(weights, axis=-1, keepdims=True)
    graphdef, params = nnx.split(self.experts)
    # Cast before `map_batch` gathers the parameters.
    params = jax.tree.map(lambda p: p.astype(dtype), params)

    def combine(params, x, weights, chosen):
      return self._combine(nnx.merge(graphdef, params), x, weights, chosen)

    y = partitioning.map_batch(
      combine, params, (x.astype(dtype), weights.astype(dtype), chosen)
    )
    loss = self._loss(
      probabilities.reshape(-1, experts), chosen.reshape(-1, choices), mask
    )
    return y, loss

  def _combine(
    self, mlps: layers.Mlp, x: jax.Array, weights: jax.Array, chosen: jax.Array
  ) -> jax.Array:
    """Computes the weighted sum of the chosen experts.

    Args:
      mlps: The experts.
      x: [..., E] activations.
      weights: [..., C] weights of the C chosen experts.
      chosen: [..., C] numbers of the chosen experts.

    Returns:
      [..., E] activations.
    """
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
    """Load-balancing loss: [N, X] probabilities, [N, C] choices, [N] mask."""
    experts = self.config.num_experts
    counted = jnp.ones(len(chosen), bool) if mask is None else mask.reshape(-1)
    tokens = jnp.maximum(jnp.sum(counted), 1)
    mean = lambda x: jnp.sum(x, axis=0, where=counted[:, None]) / tokens
    choices = jnp.sum(jax.nn.one_hot(chosen, experts), axis=1)
    return experts * jnp.sum(mean(choices) * mean(probabilities))
