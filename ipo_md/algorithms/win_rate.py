"""Win rate of the policy over the reference, by the judge in training."""

import jax
import jax.numpy as jnp

from ipo_md import judges
from ipo_md import models
from ipo_md import sampling
from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.core import averages
from ipo_md.core import types


def win_rate_metrics(
  state: types.TrainState,
  frozen: types.FrozenParams,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: models.Model,
  judge: judges.DeviceJudge,
  sampler: sampling.Sampler,
) -> objective.Metrics:
  """Judges samples of the policy against samples of the reference.

  The training loop passes the same key for the same prompts each time, so the
  samples of the reference stay fixed along a run.

  Args:
    state: Training state.
    frozen: Reference and judge. Without a reference only the metrics of the
      policy itself are there.
    prompts: [B, P] tokens of the prompts.
    rng: Random key, consumed.
    model: Network of policy and reference.
    judge: A judge on the device.
    sampler: Settings of the sampler.

  Returns:
    win_rate (mean of [p > 1/2] + 1/2 [p = 1/2]), mean_preference, kl (KL(pi,
    pi_ref) in nats per completion, a Monte Carlo estimate with
    `sampling.log_prob` on both sides), length, eos_rate; and samples, the
    policy's own `types.Completions`, to be read.

  Raises:
    ValueError: The judge gives no preference.
  """
  policy_params = model.policy(state.params, frozen)
  draw = lambda player, params: sampling.complete(
    model, params, prompts, jax.random.fold_in(rng, player), sampler=sampler
  )
  policy = draw(0, policy_params)
  own = types.Completions(prompts=prompts, completions=policy.tokens)
  ended = sampling.ended(policy.tokens, sampler.eos_id)
  metrics = {
    'length': averages.mean(jnp.sum(policy.tokens.mask, axis=-1) - ended),
    'eos_rate': averages.mean(ended),
    'samples': own,
  }
  if frozen.reference is None:
    return metrics
  reference = draw(1, frozen.reference)
  pair = types.Completions(
    prompts=prompts,
    completions=jax.tree.map(
      lambda a, b: jnp.concatenate([a, b], axis=1),
      policy.tokens,
      reference.tokens,
    ),
  )
  judges.check_params(judge, frozen.judge)
  preference = objective.preference_of(judge(frozen.judge, pair), 'win_rate')

  def log_ratio(completions):
    ours, theirs = (
      sampling.log_prob(model, params, completions)
      for params in (policy_params, frozen.reference)
    )
    return ours - theirs

  return metrics | {
    'win_rate': averages.mean(losses.hard_label(preference)),
    'mean_preference': averages.mean(preference),
    'kl': averages.mean(sampling.at_real_length(log_ratio, own)),
  }
