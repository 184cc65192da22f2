"""Judges: (params, completions) -> what they think of the completions.

A judge is a function with its network bound by gin:

  judge(params, completions: types.Completions) -> types.Labelled

`reward_model` and `likelihood` score each completion alone, `comparator` reads
two at once and answers one of two tokens, `preference_representation` reads
each completion alone and compares any two. All run on the device, inside the
train step; what gin leaves open of their parameters, a step that trains them
gives.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ipo_md import models
from ipo_md import sampling
from ipo_md.core import types
from ipo_md.judges import template as template_lib

DeviceJudge = Callable[[types.Params, types.Completions], types.Labelled]


def reward_model(
  params: types.Params,
  completions: types.Completions,
  *,
  model: models.Model,
  template: template_lib.Template | None = None,
  rng: jax.Array | None = None,
) -> types.Labelled:
  """Scores each completion by itself.

    P(y_1 > y_2 | x) = sigmoid(r(x, y_1) - r(x, y_2))        (Bradley-Terry)

  Args:
    params: parameters of `model`, which has a reward head.
    completions: K completions of each of B prompts.
    model: the network.
    template: None: the prompt is read once as it is, each completion decoded
      after it, and the head looks at its last token. Otherwise prompt and
      completion are joined into one prompt, and the head looks at the first
      thing decoded: the paper's encoder-decoder, whose encoder sees both.
    rng: key for dropout, consumed; None: no dropout.

  Returns:
    rewards [B, K] in nats, and the preference [B] if K = 2.

  Raises:
    ValueError: the head has more than one output.
  """
  if template is None:
    rewards = _heads(params, completions, model, rng)
  else:
    keys = (None, None) if rng is None else jax.random.split(rng)
    prompts, tokens = completions.prompts, completions.completions
    b, k = tokens.ids.shape[:2]
    flat = lambda x: x.reshape(b * k, -1)
    joined = template.join(
      text=jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), prompts),
      first=jax.tree.map(flat, tokens),
    )
    context = model.encode(params, joined, rng=keys[0])
    start = context.start[:, None, None]
    hidden, _, _ = model.decode(params, start, context, rng=keys[1])
    rewards = model.reward(params, hidden, jnp.ones(start.shape, bool))
    rewards = rewards.reshape(b, k, -1)
  if rewards.shape[-1] != 1:
    raise ValueError(
      f'A reward model has a head of 1 output, not {rewards.shape[-1]} '
      '(REWARD_HEAD).'
    )
  return _from_rewards(completions, rewards[..., 0])


def preference_representation(
  params: types.Params,
  completions: types.Completions,
  *,
  model: models.Model,
  rng: jax.Array | None = None,
) -> types.Labelled:
  """Embeds each completion by itself and compares any two embeddings.

    v(x, y) = (a, b) in R^2d,   s_ik = v_i' R v_k = a_i . b_k - b_i . a_k
    P(y_i > y_k | x) = sigmoid(s_ik),   r_i = mean over k of s_ik

  R is skew-symmetric, so swapping a pair gives 1 - P exactly, and a cycle can
  be expressed, which no reward can; v = (r, 1) is Bradley-Terry. The prompt is
  read once and each completion once for all K x K comparisons. For K = 2,
  r_1 - r_2 = s_12: `algorithms.reward_step` trains it by the likelihood of
  preferences. For more, r_i is the mean score against the other samples, as in
  the paper's GPO.

  Source: arXiv 2410.02197. There v has length 1, and a temperature and a gate
  that reads the prompt scale each of its d planes; here v has any length: the
  head reads the prompt too, so the two forms express the same preferences.

  Args:
    params: parameters of `model`, whose head has 2d outputs.
    completions: K completions of each of B prompts, at least two.
    model: the network.
    rng: key for dropout, consumed; None: no dropout.

  Returns:
    matrix [B, K, K], rewards [B, K] in nats, and the preference [B] if K = 2.

  Raises:
    ValueError: the head has an odd number of outputs, or K is 1.
  """
  if completions.completions.ids.shape[1] < 2:
    raise ValueError(
      'A preference representation compares the K completions of a prompt, '
      'and K is 1: MIXTURE_COEFS has one entry for each.'
    )
  v = _heads(params, completions, model, rng)
  if v.shape[-1] % 2:
    raise ValueError(
      'A preference representation has a head of an even number of outputs, '
      f'not {v.shape[-1]} (REWARD_HEAD).'
    )
  a, b = jnp.split(v, 2, axis=-1)
  # Not a matmul, which a TPU would round to bfloat16.
  product = jnp.sum(a[:, :, None] * b[:, None], axis=-1)
  scores = product - jnp.swapaxes(product, 1, 2)
  judged = _from_rewards(completions, jnp.mean(scores, axis=-1))
  return judged.replace(matrix=jax.nn.sigmoid(scores))


def _heads(
  params: types.Params,
  completions: types.Completions,
  model: models.Model,
  rng: jax.Array | None,
) -> jax.Array:
  """[B, K, D] outputs of the head at the last token of each completion."""
  keys = (None, None) if rng is None else jax.random.split(rng)
  tokens = completions.completions
  context = model.encode(params, completions.prompts, rng=keys[0])
  inputs = sampling.reading_inputs(context.start, tokens.ids)
  hidden, _, _ = model.decode(params, inputs, context, rng=keys[1])
  return model.reward(params, hidden[:, :, 1:], tokens.mask)


def likelihood(
  params: types.Params,
  completions: types.Completions,
  *,
  model: models.Model,
  rng: jax.Array | None = None,
) -> types.Labelled:
  """Scores a completion by its log-likelihood under a language model.

    r(x, y) = sum_n log p(y_n | x, y_<n),   P = sigmoid(r(x, y_1) - r(x, y_2))

  A reward model without a head: DPO's implicit reward
  (https://arxiv.org/abs/2305.18290) without its reference. Started from the
  supervised policy, which already knows what a prompt's completions look like,
  it learns preferences in a small part of the steps that a scalar head takes,
  and text that is unlike any completion scores low.

  Args:
    params: parameters of `model`.
    completions: K completions of each of B prompts.
    model: a language model.
    rng: key for dropout, consumed; None: no dropout.

  Returns:
    rewards [B, K] in nats, and the preference [B] if K = 2.
  """
  log_probs, _ = sampling.log_probs(model, params, completions, rng=rng)
  return _from_rewards(completions, jnp.sum(log_probs, axis=-1))


def comparator_log_probs(
  params: types.Params,
  completions: types.Completions,
  *,
  model: models.Model,
  template: template_lib.Template,
  answers: tuple[str, str],
  rng: jax.Array | None = None,
) -> jax.Array:
  """Log-probabilities of the two answers on both orders of a pair.

  Training and judging both read this, so they see identical tokens.

  Args:
    params: parameters of `model`.
    completions: K = 2 completions of each of B prompts.
    model: a language model.
    template: its prompt.
    answers: what it says if the first or the second is better, a token each.
    rng: key for dropout, consumed; None: no dropout.

  Returns:
    [B, 2, 2]: order (y_1 first, y_2 first) x answer (first, second), over the
    whole vocabulary.
  """
  if completions.completions.ids.shape[1] != 2:
    raise ValueError(
      f'A comparator judges K = 2 completions of a prompt, not '
      f'{completions.completions.ids.shape[1]} (MIXTURE_COEFS has one entry '
      'for each); a LOSS of rewards needs another JUDGE.'
    )
  y_1, y_2 = (
    jax.tree.map(lambda x, i=i: x[:, i], completions.completions)
    for i in range(2)
  )
  both = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b]),
    template.join(text=completions.prompts, first=y_1, second=y_2),
    template.join(text=completions.prompts, first=y_2, second=y_1),
  )
  b = y_1.ids.shape[0]
  ids = jnp.array([template.token(a) for a in answers], jnp.int32)
  ids = jnp.broadcast_to(ids[:, None], (2 * b, 2, 1))
  answered = types.Completions(
    prompts=both,
    completions=types.Tokens(ids=ids, mask=jnp.ones(ids.shape, bool)),
  )
  log_probs, _ = sampling.log_probs(model, params, answered, rng=rng)
  return jnp.swapaxes(log_probs[..., 0].reshape(2, b, 2), 0, 1)


def comparator(
  params: types.Params,
  completions: types.Completions,
  *,
  model: models.Model,
  template: template_lib.Template,
  answers: tuple[str, str],
) -> types.Labelled:
  """Reads both completions and answers with one of two tokens.

    p_12 = sigmoid(logit('1') - logit('2')) on (y_1, y_2)
    P(y_1 > y_2 | x) = (p_12 + 1 - p_21) / 2

  Probabilities, not logits, averaged over both orders: swapping the pair gives
  1 - P exactly. The paper's preference model (arXiv 2312.00886, section 8).

  Args:
    params: parameters of `model`.
    completions: K = 2 completions of each of B prompts.
    model: a language model.
    template: its prompt.
    answers: what it says if the first or the second is better, a token each.

  Returns:
    preference [B], and of both orders the matrix [B, 2, 2].
  """
  log_probs = comparator_log_probs(
    params, completions, model=model, template=template, answers=answers
  )
  p = jax.nn.sigmoid(log_probs[..., 0] - log_probs[..., 1])
  half = jnp.full_like(p[:, 0], 0.5)
  matrix = jnp.stack([half, p[:, 0], p[:, 1], half], axis=-1)
  return types.Labelled(
    completions=completions,
    completion_mask=jnp.ones((p.shape[0], 2), bool),
    preference=(p[:, 0] + 1 - p[:, 1]) / 2,
    matrix=matrix.reshape(-1, 2, 2),
  )


def _from_rewards(
  completions: types.Completions, rewards: jax.Array
) -> types.Labelled:
  preference = None
  if rewards.shape[1] == 2:
    preference = jax.nn.sigmoid(rewards[:, 0] - rewards[:, 1])
  return types.Labelled(
    completions=completions,
    completion_mask=jnp.ones(rewards.shape, bool),
    preference=preference,
    rewards=rewards,
  )


def indifferent(
  params: types.Params, completions: types.Completions
) -> types.Labelled:
  """Prefers nothing: a control. A policy trained against it must not move."""
  del params
  shape = completions.completions.ids.shape[:2]
  return types.Labelled(
    completions=completions,
    completion_mask=jnp.ones(shape, bool),
    preference=jnp.full(shape[:1], 0.5),
    rewards=jnp.zeros(shape),
  )
