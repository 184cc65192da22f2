"""Judges that run on the device, inside the train step.

A judge is a function with its network bound by gin:

  judge(params, completions: types.Completions) -> types.Labelled

`reward_model` and `likelihood` score each completion by itself, and
`preference_representation` compares any two of them. `comparison.comparator`
reads two completions at once. A step that trains a judge passes it `model` and
`rng`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ipo_md import models
from ipo_md import sampling
from ipo_md.core import types
from ipo_md.judges import declaration
from ipo_md.judges import template as template_lib

DeviceJudge = Callable[..., types.Labelled]


@declaration.declare(
  runs_on='device',
  gives=('preference', 'rewards'),
  has_params=True,
  trained_on='rewards',
)
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
    params: Parameters of `model`, which has a reward head.
    completions: K completions of each of B prompts.
    model: The network.
    template: The template that joins prompt and completion into one prompt.
      The head then reads the first decoded position, as in the paper's
      encoder-decoder, whose encoder sees both. If None, the prompt is read once
      as it is, each completion is decoded after it, and the head reads its last
      token.
    rng: Key for dropout, consumed. None disables dropout.

  Returns:
    Rewards [B, K] in nats, and the preference [B] if K = 2.

  Raises:
    ValueError: The head has more than one output.
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
      f'A reward model needs a head with 1 output, not {rewards.shape[-1]} '
      '(REWARD_HEAD).'
    )
  return _from_rewards(completions, rewards[..., 0])


@declaration.declare(
  runs_on='device',
  gives=('preference', 'rewards', 'matrix'),
  has_params=True,
  trained_on='rewards',
)
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

  R is skew-symmetric, so swapping a pair gives exactly 1 - P, and preferences
  may be cyclic, which no reward can express. v = (r, 1) is Bradley-Terry. The
  prompt and each completion are read once for all K x K comparisons. For K = 2,
  r_1 - r_2 = s_12, so `algorithms.reward_step` trains the judge by the
  likelihood of preferences. For larger K, r_i is the mean score against the
  other samples, as in the paper's GPO.

  The paper (arXiv 2410.02197) normalises v to length 1 and scales each of its d
  planes by a temperature and by a gate that reads the prompt. Here v has any
  length, and the head reads the prompt too, so both forms express the same
  preferences.

  Args:
    params: Parameters of `model`, whose head has 2d outputs.
    completions: K >= 2 completions of each of B prompts.
    model: The network.
    rng: Key for dropout, consumed. None disables dropout.

  Returns:
    Matrix [B, K, K], rewards [B, K] in nats, and the preference [B] if K = 2.

  Raises:
    ValueError: The head has an odd number of outputs, or K is 1.
  """
  check_several(completions, 'A preference representation')
  v = _heads(params, completions, model, rng)
  if v.shape[-1] % 2:
    raise ValueError(
      'A preference representation needs a head with an even number of '
      f'outputs, not {v.shape[-1]} (REWARD_HEAD).'
    )
  a, b = jnp.split(v, 2, axis=-1)
  # A TPU would round the operands of a matmul to bfloat16.
  product = jnp.sum(a[:, :, None] * b[:, None], axis=-1)
  return from_scores(completions, product - jnp.swapaxes(product, 1, 2))


def _heads(
  params: types.Params,
  completions: types.Completions,
  model: models.Model,
  rng: jax.Array | None,
) -> jax.Array:
  """Returns the head's outputs [B, K, D] at each completion's last token."""
  keys = (None, None) if rng is None else jax.random.split(rng)
  tokens = completions.completions
  context = model.encode(params, completions.prompts, rng=keys[0])
  inputs = sampling.reading_inputs(context.start, tokens.ids)
  hidden, _, _ = model.decode(params, inputs, context, rng=keys[1])
  return model.reward(params, hidden[:, :, 1:], tokens.mask)


@declaration.declare(
  runs_on='device',
  gives=('preference', 'rewards'),
  has_params=True,
  reads_head=False,
  trained_on='rewards',
)
def likelihood(
  params: types.Params,
  completions: types.Completions,
  *,
  model: models.Model,
  rng: jax.Array | None = None,
) -> types.Labelled:
  """Scores a completion by its log-likelihood under a language model.

    r(x, y) = sum_n log p(y_n | x, y_<n),   P = sigmoid(r(x, y_1) - r(x, y_2))

  This is a reward model without a head: the implicit reward of DPO
  (https://arxiv.org/abs/2305.18290) without its reference. Training starts from
  the supervised policy, which already models completions. It therefore needs a
  small fraction of the steps that a scalar head needs, and text that is unlike
  any completion scores low.

  Args:
    params: Parameters of `model`.
    completions: K completions of each of B prompts.
    model: A language model.
    rng: Key for dropout, consumed. None disables dropout.

  Returns:
    Rewards [B, K] in nats, and the preference [B] if K = 2.
  """
  log_probs, _ = sampling.log_probs(model, params, completions, rng=rng)
  return _from_rewards(completions, jnp.sum(log_probs, axis=-1))


def check_several(completions: types.Completions, who: str) -> None:
  """Raises a ValueError if a judge of pairs has nothing to compare.

  Args:
    completions: K completions of each of B prompts.
    who: The judge, for the message.
  """
  if completions.completions.ids.shape[1] < 2:
    raise ValueError(
      f'{who} compares the K completions of a prompt, and K is 1: '
      'MIXTURE_COEFS has one entry for each of them.'
    )


def from_scores(
  completions: types.Completions, scores: jax.Array
) -> types.Labelled:
  """Returns the feedback of a judge of pairs.

    P(y_i > y_k | x) = sigmoid(s_ik),   r_i = mean over k of s_ik

  Args:
    completions: K completions of each of B prompts.
    scores: [B, K, K] skew-symmetric scores, in nats.
  """
  judged = _from_rewards(completions, jnp.mean(scores, axis=-1))
  return judged.replace(matrix=jax.nn.sigmoid(scores))


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


@declaration.declare(runs_on='device', gives=('preference', 'rewards'))
def indifferent(
  params: types.Params, completions: types.Completions
) -> types.Labelled:
  """Prefers no completion.

  The judge is a control: a policy that is trained with it must not change.

  Args:
    params: Unused.
    completions: K completions of each of B prompts.

  Returns:
    Rewards [B, K] of 0 and the preference [B] of 1/2.
  """
  del params
  shape = completions.completions.ids.shape[:2]
  return types.Labelled(
    completions=completions,
    completion_mask=jnp.ones(shape, bool),
    preference=jnp.full(shape[:1], 0.5),
    rewards=jnp.zeros(shape),
  )
