"""Win rate of the policy against the reference on held-out prompts."""

import jax
import jax.numpy as jnp

from ipo_md import judges
from ipo_md import models
from ipo_md import sampling
from ipo_md.algorithms import losses
from ipo_md.algorithms import objective as objective_lib
from ipo_md.core import types


def win_rate_metrics(
  state: types.TrainState,
  frozen: types.FrozenParams,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: models.Model,
  judge: judges.DeviceJudge,
  max_new_tokens: int,
  eos_id: int,
  temperature: float = 1.0,
) -> objective_lib.Metrics:
  """The policy's samples against the reference's, by the learned judge.

  The loop passes the same rng for the same prompts each time, so the
  reference's samples stay fixed along a run.

  Returns:
    win_rate (mean of [p > 1/2] + 1/2 [p = 1/2]), mean_preference, kl (KL(pi,
    pi_ref) in nats per completion, Monte Carlo), length, eos_rate; and
    samples, the policy's own `types.Completions`, to be read.
  """
  players = (model.policy(state.params, frozen), frozen.reference)
  policy, reference = (
    sampling.sample(
      model,
      params,
      None,
      (model.encode(params, prompts), None),
      jax.random.fold_in(rng, player),
      mixture_coefs=(0.0,),
      max_new_tokens=max_new_tokens,
      eos_id=eos_id,
      temperature=temperature,
    )
    for player, params in enumerate(players)
  )
  pair = types.Completions(
    prompts=prompts,
    completions=jax.tree.map(
      lambda a, b: jnp.concatenate([a, b], axis=1),
      policy.tokens,
      reference.tokens,
    ),
  )
  preference = judge(frozen.judge, pair).preference
  own = types.Completions(prompts=prompts, completions=policy.tokens)
  reference_log_probs, _ = sampling.log_probs(model, frozen.reference, own)
  log_ratio = jnp.sum(policy.policy_log_probs - reference_log_probs, axis=-1)
  mask = policy.tokens.mask
  ended = objective_lib.ended_of(policy.tokens, eos_id)
  return {
    'win_rate': jnp.mean(losses.hard_label(preference)),
    'mean_preference': jnp.mean(preference),
    'kl': jnp.mean(log_ratio),
    'length': jnp.mean(jnp.sum(mask, axis=-1) - ended),
    'eos_rate': jnp.mean(ended),
    'samples': own,
  }
