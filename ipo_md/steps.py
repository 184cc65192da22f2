"""Training steps: (state, frozen, batch, rng) -> (next state, metrics).

gin binds the rest. An algorithm is a loss and one mixture coefficient per
completion; nothing here knows its name. Named scopes tell `precompile` the
phase of each instruction; what has no other is part of 'log_probs'.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ipo_md import judges
from ipo_md import losses
from ipo_md import optimizers
from ipo_md import sampling
from ipo_md import sequences
from ipo_md import types
from ipo_md.models import model as model_lib

Metrics = Mapping[str, Any]
Loss = Callable[..., jax.Array]

# Their gradient needs samples of the policy, and sums over their tokens.
_POLICY_GRADIENTS = ('policy_gradient', 'reinforce')


def supervised_step(
  state: types.TrainState,
  frozen: types.FrozenParams,
  batch: types.Labelled,
  rng: jax.Array,
  *,
  model: model_lib.Model,
  optimizer: optax.GradientTransformation,
  z_loss: float,
) -> tuple[types.TrainState, Metrics]:
  """Maximum likelihood of the batch's completions, the mean over tokens.

  Args:
    state: donated.
    frozen: unused, but for what `Model.policy` takes of it.
    batch: K completions of each prompt, usually one.
    rng: key for dropout, consumed.
    model: policy.
    optimizer: of its parameters.
    z_loss: see `losses.cross_entropy`.

  Returns:
    The next state; loss, perplexity, tokens, grad_norm.
  """

  def objective(params):
    return _likelihood(model, params, batch, rng, z_loss)

  return update(state, frozen, objective, model, optimizer)


def target_tokens(batch: types.Labelled) -> jax.Array:
  """[] what `supervised_step` takes its mean over."""
  return jnp.sum(batch.completions.completions.mask)


def supervised_metrics(
  state: types.TrainState,
  frozen: types.FrozenParams,
  batch: types.Labelled,
  rng: jax.Array,
  *,
  model: model_lib.Model,
) -> Metrics:
  """The supervised loss on held-out examples, without dropout and z-loss."""
  del rng
  policy = model.policy(state.params, frozen)
  return _likelihood(model, policy, batch, None, 0.0)[1]


def online_step(
  state: types.TrainState,
  frozen: types.FrozenParams,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: model_lib.Model,
  judge: judges.Judge,
  loss: Loss,
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
) -> tuple[types.TrainState, Metrics]:
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
  kind = feedback_of(loss)
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
      require(labelled, 'preference', 'LABEL')
      preference = label(labelled.preference, rng=label_rng)
      labelled = labelled.replace(preference=preference)
    ended = ended_of(sampled.tokens, eos_id)
    if truncation_reward is not None:
      require(labelled, 'rewards', 'TRUNCATION_REWARD')
      labelled = labelled.replace(
        rewards=jnp.where(ended, labelled.rewards, truncation_reward)
      )
    value, metrics = policy_loss(
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

  state, metrics = update(state, frozen, objective, model, optimizer)
  if ema_decay is not None:
    state = state.replace(
      ema=optax.incremental_update(state.params, state.ema, 1 - ema_decay)
    )
  return state, metrics


def offline_step(
  state: types.TrainState,
  frozen: types.FrozenParams,
  batch: types.Labelled,
  rng: jax.Array,
  *,
  model: model_lib.Model,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  per_token: bool = False,
) -> tuple[types.TrainState, Metrics]:
  """Updates on a data set's completions and feedback.

  Args:
    state: donated.
    frozen: the reference, unless the batch has its log-probabilities.
    batch: labelled completions.
    rng: key for dropout, consumed.
    model: network of policy and reference.
    loss: an objective of `losses` that does not need the policy's samples.
    optimizer: of the policy.
    per_token: log-ratios are means over tokens rather than sums.

  Returns:
    The next state; loss, log_ratio, preference or rewards, chosen_log_prob and
    rejected_log_prob.
  """
  name = getattr(loss, 'func', loss).__name__
  if name in _POLICY_GRADIENTS:
    raise ValueError(
      f'LOSS = {name} needs samples of the policy, which an offline run does '
      'not draw: take gin/runs/online.gin or another LOSS.'
    )
  mask = batch.completions.completions.mask
  reference_log_prob = batch.reference_log_prob
  if reference_log_prob is None:
    with jax.named_scope('log_probs'):
      log_probs, _ = sequences.log_probs(
        model, frozen.reference, batch.completions
      )
    reference_log_prob = jnp.sum(log_probs, axis=-1)
  if per_token:
    reference_log_prob /= jnp.maximum(jnp.sum(mask, axis=-1), 1)
  batch = batch.replace(reference_log_prob=reference_log_prob)
  objective = functools.partial(
    policy_loss,
    labelled=batch,
    model=model,
    loss=loss,
    per_token=per_token,
    rng=rng,
  )
  return update(state, frozen, objective, model, optimizer)


def win_rate_metrics(
  state: types.TrainState,
  frozen: types.FrozenParams,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: model_lib.Model,
  judge: judges.Judge,
  max_new_tokens: int,
  eos_id: int,
  temperature: float = 1.0,
) -> Metrics:
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
  reference_log_probs, _ = sequences.log_probs(model, frozen.reference, own)
  log_ratio = jnp.sum(policy.policy_log_probs - reference_log_probs, axis=-1)
  mask = policy.tokens.mask
  ended = ended_of(policy.tokens, eos_id)
  return {
    'win_rate': jnp.mean(losses.hard_label(preference)),
    'mean_preference': jnp.mean(preference),
    'kl': jnp.mean(log_ratio),
    'length': jnp.mean(jnp.sum(mask, axis=-1) - ended),
    'eos_rate': jnp.mean(ended),
    'samples': own,
  }


def ended_of(tokens: types.Tokens, eos_id: int) -> jax.Array:
  """[B, K] whether a completion reached EOS."""
  return jnp.any(tokens.mask & (tokens.ids == eos_id), axis=-1)


def feedback_of(loss: Loss) -> str:
  """'preference' or 'rewards': the name of a loss's second parameter."""
  return list(inspect.signature(loss).parameters)[1]


def _judged(
  frozen: types.FrozenParams,
  completions: types.Completions,
  context: types.Context,
  log_probs: jax.Array | None,
  *,
  model: model_lib.Model,
  judge: judges.Judge,
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
      reference, _ = sequences.log_probs(
        model, frozen.reference, completions, context=context
      )
    reference = sequences.sum_or_mean(
      reference[..., : mask.shape[-1]], mask, per_token=per_token
    )
    return labelled.replace(completions=None, reference_log_prob=reference)

  labelled = sequences.at_real_length(read, completions)
  return labelled.replace(completions=completions)


def policy_loss(
  policy: types.Params,
  labelled: types.Labelled,
  *,
  model: model_lib.Model,
  loss: Loss,
  per_token: bool,
  context: types.Context | None = None,
  sampled: jax.Array | None = None,
  rng: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
  """What online and offline steps share: completions -> loss, metrics.

  Args:
    policy: its parameters.
    labelled: completions, feedback and the reference's log-probabilities.
    model: the network.
    loss: an objective of `losses`.
    per_token: log-ratios are means over tokens rather than sums.
    context: the prompts as `policy` reads them; None: they are read here.
    sampled: [B, K, T] log-probabilities that the sampling loop found, to be
      compared; None: not known.
    rng: key for dropout, consumed; None: no dropout.
  """
  kind = feedback_of(loss)
  name = getattr(loss, 'func', loss).__name__
  require(labelled, kind, name)
  if per_token and name in _POLICY_GRADIENTS:
    raise ValueError(
      f'PER_TOKEN = True with LOSS = {name}: its gradient needs '
      'log-probabilities summed over tokens.'
    )
  feedback = getattr(labelled, kind)
  extra, compared = {}, {}
  if 'completion_mask' in inspect.signature(loss).parameters:
    extra['completion_mask'] = labelled.completion_mask
  mask = labelled.completions.completions.mask
  log_probs, aux = sequences.log_probs(
    model, policy, labelled.completions, context=context, rng=rng
  )
  if sampled is not None:
    error = jnp.mean(jnp.abs(log_probs - sampled), where=mask)
    compared = {'sampling_error': jax.lax.stop_gradient(error)}
  log_prob = sequences.sum_or_mean(log_probs, mask, per_token=per_token)
  log_ratios = log_prob - labelled.reference_log_prob
  value = jnp.mean(loss(log_ratios, feedback, **extra))
  real = labelled.completion_mask
  return value + aux, {
    'loss': value,
    'tokens': jnp.sum(mask),
    'log_ratio': jnp.mean(log_ratios, where=real),
    kind: jnp.mean(feedback, where=real if feedback.ndim == 2 else None),
    **_chosen_and_rejected(log_prob, feedback, real),
    **compared,
  }


def _chosen_and_rejected(
  log_prob: jax.Array, feedback: jax.Array, real: jax.Array
) -> Metrics:
  """How likely the better and the worse completion are, means over prompts.

  Both may fall while their difference grows: InfoNCA lets the chosen one fall,
  NCA does not (https://arxiv.org/abs/2402.05369). Of rewards the highest and
  the lowest count; of a tie the mean of both completions.

  Args:
    log_prob: [B, K] of the policy, nats.
    feedback: preference [B] or rewards [B, K].
    real: [B, K] completions that are there.
  """
  if log_prob.shape[-1] < 2:
    return {}
  if feedback.ndim == 1:
    first = losses.hard_label(feedback)
    weights = jnp.stack([first, 1 - first], axis=-1)
    chosen, rejected = weights, 1 - weights
  else:
    best = jnp.argmax(jnp.where(real, feedback, -jnp.inf), axis=-1)
    worst = jnp.argmin(jnp.where(real, feedback, jnp.inf), axis=-1)
    chosen, rejected = (
      jax.nn.one_hot(k, log_prob.shape[-1]) for k in (best, worst)
    )
  return {
    'chosen_log_prob': jnp.mean(jnp.sum(chosen * log_prob, axis=-1)),
    'rejected_log_prob': jnp.mean(jnp.sum(rejected * log_prob, axis=-1)),
  }


def _likelihood(
  model: model_lib.Model,
  params: types.Params,
  batch: types.Labelled,
  rng: jax.Array | None,
  z_loss: float,
) -> tuple[jax.Array, Metrics]:
  """Mean cross-entropy over tokens, and metrics."""
  keys = (None, None) if rng is None else jax.random.split(rng)
  tokens = batch.completions.completions
  context = model.encode(params, batch.completions.prompts, rng=keys[0])
  inputs = sequences.decoder_inputs(context.start, tokens.ids)
  hidden, _, aux = model.decode(
    params, inputs, context, mask=tokens.mask, rng=keys[1]
  )
  log_probs, log_z = sequences.token_log_probs(
    model, params, hidden, tokens.ids
  )
  count = jnp.sum(tokens.mask)
  mean = lambda x: jnp.sum(jnp.where(tokens.mask, x, 0)) / count
  loss = mean(losses.cross_entropy(log_probs, log_z, z_loss=z_loss))
  return loss + aux, {
    'loss': loss,
    'perplexity': jnp.exp(-mean(log_probs)),
    'tokens': count,
  }


def update(
  state: types.TrainState,
  frozen: types.FrozenParams,
  objective: Callable[[types.Params], tuple[jax.Array, Metrics]],
  model: model_lib.Model,
  optimizer: optax.GradientTransformation,
) -> tuple[types.TrainState, Metrics]:
  def of_state(params):
    with jax.named_scope('log_probs'):
      return objective(model.policy(params, frozen))

  grads, metrics = jax.grad(of_state, has_aux=True)(state.params)
  with jax.named_scope('update'):
    state, applied = optimizers.apply(optimizer, grads, state)
    return state, {**metrics, **applied}


def require(labelled: types.Labelled, field: str, who: str) -> None:
  """Raises ValueError if a loss's feedback is not there."""
  if getattr(labelled, field) is None:
    other = {'preference': 'rewards', 'rewards': 'preference'}[field]
    hint = ''
    if field == 'preference':
      hint = ' Rewards give one if MIXTURE_COEFS has 2 entries.'
    raise ValueError(
      f'{who} needs {field}, but judge or data set give only {other}: change '
      f'LOSS, JUDGE or MIXTURE_OR_TASK_NAME.{hint}'
    )
