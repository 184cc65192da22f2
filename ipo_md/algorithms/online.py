"""The online step: samples, judges and updates in one program.

gin binds everything but state, frozen, prompts and rng. An algorithm is a loss
and one mixture coefficient for each completion; nothing here knows its name.
Named scopes tell `precompile` the phase of each instruction; instructions
outside of a scope belong to 'log_probs'.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import jax
import optax

from ipo_md import judges
from ipo_md import models
from ipo_md import sampling
from ipo_md.algorithms import needs
from ipo_md.algorithms import objective as objective_lib
from ipo_md.algorithms import players as players_lib
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
  players: players_lib.Players = players_lib.Players(),
) -> tuple[types.TrainState, objective_lib.Metrics]:
  """Samples, judges and updates.

    y_k ~ SG[pi^(1 - b_k) player^b_k],   b = mixture_coefs
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
    mixture_coefs: b, K weights of the second player, usually the reference.
    sampler: Settings of the sampler. With `int8`, a mixture too needs a
      forward pass of the reference.
    per_token: Whether log-ratios are means over tokens rather than sums.
    players: The policies beside the one that is trained, and the one of them
      that samples are mixed with.

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
  players.check(loss, state, frozen, mixture_coefs)
  rng, label_rng = jax.random.split(rng)
  state = players.refreshed(state)
  others = players.policies(model, state, frozen)
  anchors = needs.of(loss).anchors
  mixed = (players.second,) if any(mixture_coefs) else ()

  def objective(policy):
    # Each model reads the prompts once, for samples and loss alike.
    with jax.named_scope('encode'):
      context = model.encode(policy, prompts)
      contexts = {
        name: model.encode(params, prompts)
        for name, params in others.items()
        if name in anchors or name in mixed
      }
    with jax.named_scope('decode'):
      sampled = sampling.complete(
        model,
        policy,
        prompts,
        rng,
        sampler=sampler,
        mixture_coefs=mixture_coefs,
        player=others[players.second],
        contexts=(context, contexts.get(players.second)),
      )
    labelled, log_prob = _judged(
      policy,
      frozen.judge,
      types.Completions(prompts=prompts, completions=sampled.tokens),
      {name: (others[name], contexts[name]) for name in anchors},
      sampled if anchors == mixed else None,
      model=model,
      judge=feedback.judge,
      per_token=per_token,
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
  return players.averaged(state), metrics


def _judged(
  policy: types.Params,
  judge_params: types.Params | None,
  completions: types.Completions,
  anchors: Mapping[str, tuple[types.Params, types.Context]],
  sampled: sampling.Sampled | None,
  *,
  model: models.Model,
  judge: judges.DeviceJudge,
  per_token: bool,
) -> tuple[types.Labelled, jax.Array | None]:
  """Adds the judge's feedback and the log-probabilities of the log-ratios.

  Both sides of a log-ratio have one source: the sampling loop, if it knows both
  in float32, or else a pass of each model over the completions.

  Args:
    policy: Parameters of the policy.
    judge_params: Parameters of the judge.
    completions: The completions that were sampled.
    anchors: Parameters of each anchor of the objective, and the prompts as it
      reads them.
    sampled: What the sampling loop found, if it mixed with the one anchor.
    model: Network of policy and players.
    judge: Judge of the completions.
    per_token: Whether the log-probability is a mean over tokens rather than a
      sum.

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
      labelled = judge(judge_params, completions).replace(completions=None)
    if not anchors:
      return labelled, None
    mask = completions.completions.mask
    if sampling.rounds(model):
      log_prob, *found = (
        sampling.log_prob(
          model,
          params,
          completions,
          per_token=per_token,
          dtype=model.log_ratio_dtype,
        )
        for params in (policy, *(params for params, _ in anchors.values()))
      )
    elif sampled is not None and sampled.reference_log_probs is not None:
      log_prob = reduced(sampled.policy_log_probs, mask)
      found = [reduced(sampled.reference_log_probs, mask)]
    else:
      log_prob, found = None, []
      for params, context in anchors.values():
        log_probs, _ = sampling.log_probs(
          model, params, completions, context=context
        )
        found.append(reduced(log_probs, mask))
    known = dict(zip(anchors, found, strict=True))
    reference = known.pop('reference', None)
    labelled = labelled.replace(
      reference_log_prob=reference, player_log_probs=known
    )
    return labelled, log_prob

  labelled, log_prob = sampling.at_real_length(read, completions)
  return labelled.replace(completions=completions), log_prob
