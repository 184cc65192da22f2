"""Training steps: (state, frozen, batch, rng) -> (next state, metrics).

gin binds the rest. An algorithm is a loss and one mixture coefficient per
completion; nothing here knows its name. Named scopes tell `precompile` the
phase of each instruction; what has no other is part of 'log_probs'.
"""

from collections.abc import Callable
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from ipo_md import judges
from ipo_md import models
from ipo_md import sampling
from ipo_md.algorithms import objective as objective_lib
from ipo_md.core import types


def online_step(
  state: types.TrainState,
  frozen: types.FrozenParams,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: models.Model,
  judge: judges.DeviceJudge,
  loss: objective_lib.Loss,
  optimizer: optax.GradientTransformation,
  mixture_coefs: Sequence[float],
  max_new_tokens: int,
  eos_id: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  per_token: bool = False,
  ema_decay: float | None = None,
  truncation_reward: float | None = None,
  label: Callable[..., jax.Array] | None = None,
  int8_sampling: bool = False,
) -> tuple[types.TrainState, objective_lib.Metrics]:
  """Samples, judges and updates, in one program.

    y_k ~ SG[pi^(1 - b_k) pi_ref^b_k],   b = mixture_coefs
    theta <- theta - optimizer(grad mean loss(rho(y), judge(y)))

  The loss stays in pi, without importance weights, whatever was sampled from.

  Args:
    state: donated.
    frozen: reference and judge.
    prompts: [B, P].
    rng: key, consumed.
    model: network of policy and reference.
    judge: gives the feedback that the loss asks for.
    loss: an objective of `losses`.
    optimizer: of the policy.
    mixture_coefs: b, K weights of the reference.
    max_new_tokens: T.
    eos_id: ends a completion.
    temperature: of sampling; the log-ratios stay at temperature 1.
    top_k: of sampling.
    top_p: of sampling.
    per_token: log-ratios are means over tokens rather than sums.
    ema_decay: None, or the second player of the mixture is not the reference
      but a moving average of the policy with this decay (Nash-EMA).
    truncation_reward: None, or the reward of a completion without EOS.
    label: None, the judge's preference is the label; or `losses.hard_label`,
      `losses.sampled_label`.
    int8_sampling: whether the samples are of kernels rounded to int8: not quite
      the policy's own, as `losses.policy_gradient` and `losses.reinforce` want
      them. Loss and log-ratios stay those of the policy and the reference
      themselves, so that a mixture too needs a forward pass of the reference.

  Returns:
    The next state; loss, log_ratio (sum over tokens; the KL from the reference
    if the samples are just the policy's), preference or rewards,
    chosen_log_prob and rejected_log_prob (K > 1), length (tokens without EOS),
    eos_rate, tokens, sampling_error (how far log pi in the sampling loop is
    from log pi in the loss, mean of the absolute difference over the tokens of
    a part, nats).
  """
  kind = objective_lib.feedback_of(loss)
  if label is not None and kind != 'preference':
    raise ValueError('LABEL is of preferences, and this LOSS needs rewards.')
  if truncation_reward is not None and kind != 'rewards':
    raise ValueError(
      'TRUNCATION_REWARD is a reward, and this LOSS needs a preference.'
    )
  sampling.validate(
    mixture_coefs, temperature=temperature, top_k=top_k, top_p=top_p
  )
  rng, label_rng = jax.random.split(rng)
  player = frozen.reference
  if ema_decay is not None:
    player = model.policy(state.ema, frozen)

  def objective(policy):
    # Each model reads the prompts once, the policy for samples and loss alike.
    with jax.named_scope('encode'):
      context = model.encode(policy, prompts)
      reference_context = model.encode(frozen.reference, prompts)
      player_context = reference_context
      if ema_decay is not None:
        player_context = model.encode(player, prompts)
    with jax.named_scope('decode'):
      sampled = sampling.sample(
        model,
        policy,
        player,
        (context, player_context),
        rng,
        mixture_coefs=mixture_coefs,
        max_new_tokens=max_new_tokens,
        eos_id=eos_id,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        int8=int8_sampling,
      )
    labelled = _judged(
      frozen,
      types.Completions(prompts=prompts, completions=sampled.tokens),
      reference_context,
      sampled.reference_log_probs if ema_decay is None else None,
      model=model,
      judge=judge,
      per_token=per_token,
    )
    if label is not None:
      objective_lib.require(labelled, 'preference', 'LABEL')
      preference = label(labelled.preference, rng=label_rng)
      labelled = labelled.replace(preference=preference)
    ended = objective_lib.ended_of(sampled.tokens, eos_id)
    if truncation_reward is not None:
      objective_lib.require(labelled, 'rewards', 'TRUNCATION_REWARD')
      labelled = labelled.replace(
        rewards=jnp.where(ended, labelled.rewards, truncation_reward)
      )
    value, metrics = objective_lib.policy_loss(
      policy,
      labelled,
      model=model,
      loss=loss,
      per_token=per_token,
      context=context,
      sampled=sampled.policy_log_probs,
    )
    return value, metrics | {
      'length': jnp.mean(jnp.sum(sampled.tokens.mask, axis=-1) - ended),
      'eos_rate': jnp.mean(ended),
    }

  state, metrics = objective_lib.update(
    state, frozen, objective, model, optimizer
  )
  if ema_decay is not None:
    state = state.replace(
      ema=optax.incremental_update(state.params, state.ema, 1 - ema_decay)
    )
  return state, metrics


def _judged(
  frozen: types.FrozenParams,
  completions: types.Completions,
  context: types.Context,
  log_probs: jax.Array | None,
  *,
  model: models.Model,
  judge: judges.DeviceJudge,
  per_token: bool,
) -> types.Labelled:
  """Completions with the judge's feedback and the reference's log-probability.

  Args:
    frozen: reference and judge.
    completions: what was sampled.
    context: the prompts as the reference reads them.
    log_probs: [B, K, T] by the reference, if the sampler saw them.
    model: of the reference.
    judge: of the completions.
    per_token: the log-probability is a mean over tokens rather than a sum.
  """

  def read(completions):
    with jax.named_scope('judge'):
      labelled = judge(frozen.judge, completions)
    mask = completions.completions.mask
    reference = log_probs
    if log_probs is None:
      reference, _ = sampling.log_probs(
        model, frozen.reference, completions, context=context
      )
    reference = sampling.sum_or_mean(
      reference[..., : mask.shape[-1]], mask, per_token=per_token
    )
    return labelled.replace(completions=None, reference_log_prob=reference)

  labelled = sampling.at_real_length(read, completions)
  return labelled.replace(completions=completions)
