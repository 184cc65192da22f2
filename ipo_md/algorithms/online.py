"""The online step: samples, judges and updates in one program.

gin binds everything but state, frozen, prompts and rng. An algorithm is a loss
and one mixture coefficient for each completion; nothing here knows its name.
Named scopes tell `precompile` the phase of each instruction; instructions
outside of a scope belong to 'log_probs'.
"""

from collections.abc import Sequence

import jax
import optax

from ipo_md import judges
from ipo_md import models
from ipo_md import sampling
from ipo_md.algorithms import needs
from ipo_md.algorithms import objective as objective_lib
from ipo_md.algorithms import step_kinds
from ipo_md.core import types


@step_kinds.declare(samples=True, judge=lambda bound: bound['feedback'].judge)
def online_step(
  state: types.TrainState,
  frozen: types.FrozenParams,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: models.Model,
  feedback: objective_lib.Feedback,
  loss: objective_lib.Loss,
  optimizer: optax.GradientTransformation,
  mixture_coefs: Sequence[float],
  sampler: sampling.Sampler,
  per_token: bool = False,
  ema_decay: float | None = None,
) -> tuple[types.TrainState, objective_lib.Metrics]:
  """Samples, judges and updates.

    y_k ~ SG[pi^(1 - b_k) pi_ref^b_k],   b = mixture_coefs
    theta <- theta - optimizer(grad mean loss(rho(y), judge(y)))

  The loss stays in pi, without importance weights, whatever was sampled from.

  Args:
    state: Training state, donated.
    frozen: Reference and judge. The reference may be None if the objective is
      reference-free and nothing is sampled from it.
    prompts: [B, P] tokens of the prompts.
    rng: Random key, consumed.
    model: Network of policy and reference.
    feedback: The judge of the completions, and what is made of its answer.
    loss: An objective of `losses`.
    optimizer: Optimizer of the policy.
    mixture_coefs: b, K weights of the reference.
    sampler: Settings of the sampler. With `int8`, a mixture too needs a
      forward pass of the reference.
    per_token: Whether log-ratios are means over tokens rather than sums.
    ema_decay: Decay of a moving average of the policy that takes the place of
      the reference in the mixture (Nash-EMA); None mixes with the reference.

  Returns:
    The next state, and metrics: loss, log_ratio (a sum over tokens; the KL
    divergence from the reference if all samples are the policy's own),
    preference or rewards, chosen_log_prob, rejected_log_prob and
    ranking_accuracy (K > 1), those of `objective.sample_metrics`, tokens, and
    sampling_error (the mean absolute difference, over tokens, between log pi
    in the sampling loop and in the loss, in nats).

  Raises:
    ValueError: The settings do not go together.
  """
  sampling.validate(mixture_coefs)
  sampling.check_dtype(model.log_ratio_dtype)
  feedback.check(loss)
  judges.check_params(feedback.judge, frozen.judge)
  needs.check_samples(loss, mixture_coefs)
  mixes_reference = ema_decay is None and any(mixture_coefs)
  reads_reference = objective_lib.check_reference(
    loss, frozen.reference, mixed=mixes_reference
  )
  rng, label_rng = jax.random.split(rng)
  player, ema = frozen.reference, state.ema
  if ema_decay is not None:
    if ema is None:
      raise ValueError('ema_decay needs training.Start.ema = True.')
    player = model.policy(ema, frozen)

  def objective(policy):
    # Each model reads the prompts once, for samples and loss alike.
    with jax.named_scope('encode'):
      context = model.encode(policy, prompts)
      reference_context = player_context = None
      if reads_reference or mixes_reference:
        reference_context = model.encode(frozen.reference, prompts)
      if ema_decay is not None:
        player_context = model.encode(player, prompts)
    with jax.named_scope('decode'):
      sampled = sampling.complete(
        model,
        policy,
        prompts,
        rng,
        sampler=sampler,
        mixture_coefs=mixture_coefs,
        player=player,
        contexts=(
          context,
          reference_context if ema_decay is None else player_context,
        ),
      )
    labelled, log_prob = _judged(
      policy,
      frozen,
      types.Completions(prompts=prompts, completions=sampled.tokens),
      reference_context,
      sampled if mixes_reference else None,
      model=model,
      judge=feedback.judge,
      per_token=per_token,
      reads_reference=reads_reference,
    )
    ended = sampling.ended(sampled.tokens, sampler.eos_id)
    labelled = feedback.apply(labelled, ended, label_rng)
    value, metrics = objective_lib.policy_loss(
      policy,
      labelled,
      model=model,
      loss=loss,
      per_token=per_token,
      context=context,
      sampled=sampled.policy_log_probs,
      log_prob=log_prob,
    )
    measured = objective_lib.sample_metrics(sampled.tokens, sampler.eos_id)
    return value, {**metrics, **measured}

  state, metrics = objective_lib.update(
    state, frozen, objective, model, optimizer
  )
  if ema_decay is not None and ema is not None:
    state = state.replace(
      ema=optax.incremental_update(state.params, ema, 1 - ema_decay)
    )
  return state, metrics


def _judged(
  policy: types.Params,
  frozen: types.FrozenParams,
  completions: types.Completions,
  context: types.Context | None,
  sampled: sampling.Sampled | None,
  *,
  model: models.Model,
  judge: judges.DeviceJudge,
  per_token: bool,
  reads_reference: bool,
) -> tuple[types.Labelled, jax.Array | None]:
  """Adds the judge's feedback and the log-probabilities of the log-ratios.

  Both sides of a log-ratio have one source: the sampling loop, if it knows both
  in float32, or else a pass of each model over the completions.

  Args:
    policy: Parameters of the policy.
    frozen: Reference and judge.
    completions: The completions that were sampled.
    context: The prompts as the reference reads them.
    sampled: What the sampling loop found, if it mixed with the reference.
    model: Network of policy and reference.
    judge: Judge of the completions.
    per_token: Whether the log-probability is a mean over tokens rather than a
      sum.
    reads_reference: Whether the objective needs log-probabilities by the
      reference.

  Returns:
    The labelled completions, and the policy's log-probabilities [B, K], without
    a gradient. The latter are None if the pass of the loss gives them.
  """

  def reduced(log_probs, mask):
    return sampling.sum_or_mean(
      log_probs[..., : mask.shape[-1]], mask, per_token=per_token
    )

  def read(completions):
    with jax.named_scope('judge'):
      labelled = judge(frozen.judge, completions).replace(completions=None)
    if not reads_reference:
      return labelled, None
    mask = completions.completions.mask
    if sampling.rounds(model):
      log_prob, reference = (
        sampling.log_prob(
          model,
          params,
          completions,
          per_token=per_token,
          dtype=model.log_ratio_dtype,
        )
        for params in (policy, frozen.reference)
      )
    elif sampled is not None and sampled.reference_log_probs is not None:
      log_prob = reduced(sampled.policy_log_probs, mask)
      reference = reduced(sampled.reference_log_probs, mask)
    else:
      log_probs, _ = sampling.log_probs(
        model, frozen.reference, completions, context=context
      )
      log_prob, reference = None, reduced(log_probs, mask)
    return labelled.replace(reference_log_prob=reference), log_prob

  labelled, log_prob = sampling.at_real_length(read, completions)
  return labelled.replace(completions=completions), log_prob
