"""Supervised fine-tuning: maximum likelihood, and its metrics."""

import jax
import jax.numpy as jnp
import optax

from ipo_md import models
from ipo_md import sampling
from ipo_md.algorithms import losses
from ipo_md.algorithms import objective as objective_lib
from ipo_md.algorithms import step_kinds
from ipo_md.core import averages
from ipo_md.core import types


@step_kinds.declare()
def supervised_step(
  state: types.TrainState,
  frozen: types.FrozenParams,
  batch: types.Labelled,
  rng: jax.Array,
  *,
  model: models.Model,
  optimizer: optax.GradientTransformation,
  z_loss: float,
) -> tuple[types.TrainState, objective_lib.Metrics]:
  """Makes one update that maximises the likelihood of the completions.

  The loss is the mean over the tokens of the batch.

  Args:
    state: Training state, donated.
    frozen: Frozen parameters. Only LoRA reads them.
    batch: K completions of each prompt, usually one.
    rng: Random key for dropout, consumed.
    model: Network of the policy.
    optimizer: Optimizer of its parameters.
    z_loss: Weight of T5X's penalty (`losses.cross_entropy`).

  Returns:
    The next state, and metrics: loss, perplexity (exp of the mean negative
    log-probability of a token), tokens, grad_norm.
  """

  def objective(params):
    return _likelihood(model, params, batch, rng, z_loss)

  return objective_lib.update(state, frozen, objective, model, optimizer)


def target_tokens(batch: types.Labelled) -> jax.Array:
  """Counts the tokens that `supervised_step` averages over."""
  return jnp.sum(batch.completions.completions.mask)


def supervised_metrics(
  state: types.TrainState,
  frozen: types.FrozenParams,
  batch: types.Labelled,
  rng: jax.Array,
  *,
  model: models.Model,
) -> objective_lib.Metrics:
  """Computes the loss on held-out examples, without dropout and z-loss."""
  del rng
  policy = model.policy(state.params, frozen)
  return _likelihood(model, policy, batch, None, 0.0)[1]


def _likelihood(
  model: models.Model,
  params: types.Params,
  batch: types.Labelled,
  rng: jax.Array | None,
  z_loss: float,
) -> tuple[jax.Array, objective_lib.Metrics]:
  """Computes the mean cross-entropy over tokens, and metrics."""
  keys = (None, None) if rng is None else jax.random.split(rng)
  tokens = batch.completions.completions
  context = model.encode(params, batch.completions.prompts, rng=keys[0])
  inputs = sampling.decoder_inputs(context.start, tokens.ids)
  hidden, _, aux = model.decode(
    params, inputs, context, mask=tokens.mask, rng=keys[1]
  )
  log_probs, log_z = sampling.token_log_probs(model, params, hidden, tokens.ids)
  count = jnp.sum(tokens.mask)
  total = lambda x: jnp.sum(jnp.where(tokens.mask, x, 0))
  loss = total(losses.cross_entropy(log_probs, log_z, z_loss=z_loss))
  return loss / count + aux, {
    'loss': averages.Mean(loss, count),
    'perplexity': averages.Mean(-total(log_probs), count, exponential=True),
    'tokens': averages.Sum(count),
  }
