"""Judges that read two completions at once.

`comparator` names the better one, and `pairwise_likelihood` gives the
likelihood of each beside the other.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ipo_md import models
from ipo_md import sampling
from ipo_md.core import types
from ipo_md.judges import declaration
from ipo_md.judges import learned
from ipo_md.judges import template as template_lib


def comparator_log_probs(
  params: types.Params,
  completions: types.Completions,
  *,
  model: models.Model,
  template: template_lib.Template,
  answers: tuple[str, str],
  rng: jax.Array | None = None,
) -> jax.Array:
  """Returns log-probabilities of the two answers for both orders of a pair.

  Training and judging both call this function, so they see identical tokens.

  Args:
    params: Parameters of `model`.
    completions: K = 2 completions of each of B prompts.
    model: A language model.
    template: The template of its prompt.
    answers: The answers that mean "the first is better" and "the second is
      better", each a single token.
    rng: Key for dropout, consumed. None disables dropout.

  Returns:
    [B, 2, 2] log-probabilities over the whole vocabulary, by order (y_1 first,
    y_2 first) and answer (first, second).

  Raises:
    ValueError: K is not 2.
  """
  if completions.completions.ids.shape[1] != 2:
    raise ValueError(
      f'A comparator judges K = 2 completions of a prompt, not '
      f'{completions.completions.ids.shape[1]} (MIXTURE_COEFS has one entry '
      'for each). A LOSS that needs rewards needs another JUDGE.'
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


@declaration.declare(
  runs_on='device',
  gives=('preference', 'matrix'),
  has_params=True,
  reads_head=False,
  trained_on='answers',
)
def comparator(
  params: types.Params,
  completions: types.Completions,
  *,
  model: models.Model,
  template: template_lib.Template,
  answers: tuple[str, str],
) -> types.Labelled:
  """Reads two completions at once and answers with one of two tokens.

    p_12 = sigmoid(logit('1') - logit('2')) on (y_1, y_2)
    P(y_1 > y_2 | x) = (p_12 + 1 - p_21) / 2

  Probabilities are averaged over both orders, not logits, so swapping the pair
  gives exactly 1 - P. This is the preference model of arXiv 2312.00886,
  section 8. Of K completions, each of the K (K - 1) / 2 pairs is read.

  Args:
    params: Parameters of `model`.
    completions: K >= 2 completions of each of B prompts.
    model: A language model.
    template: The template of its prompt.
    answers: The answers that mean "the first is better" and "the second is
      better", each a single token.

  Returns:
    The matrix [B, K, K] with both orders, and the preference [B] if K = 2.

  Raises:
    ValueError: K is 1.
  """
  learned.check_several(completions, 'A comparator')
  b, k, t = completions.completions.ids.shape
  ones, others = np.triu_indices(k, 1)
  pairs = completions
  if k > 2:
    of_pairs = lambda x: jnp.stack([x[:, ones], x[:, others]], axis=2)
    pairs = types.Completions(
      prompts=jax.tree.map(
        lambda x: jnp.repeat(x, len(ones), axis=0), completions.prompts
      ),
      completions=jax.tree.map(
        lambda x: of_pairs(x).reshape(-1, 2, t), completions.completions
      ),
    )
  log_probs = comparator_log_probs(
    params, pairs, model=model, template=template, answers=answers
  )
  p = jax.nn.sigmoid(log_probs[..., 0] - log_probs[..., 1])
  by_pair = p.reshape(b, -1, 2)
  matrix = jnp.full((b, k, k), 0.5, p.dtype)
  matrix = matrix.at[:, ones, others].set(by_pair[..., 0])
  matrix = matrix.at[:, others, ones].set(by_pair[..., 1])
  return types.Labelled(
    completions=completions,
    completion_mask=jnp.ones((b, k), bool),
    preference=(p[:, 0] + 1 - p[:, 1]) / 2 if k == 2 else None,
    matrix=matrix,
  )


@declaration.declare(
  runs_on='device',
  gives=('preference', 'rewards', 'matrix'),
  has_params=True,
  reads_head=False,
  trained_on='rewards',
)
def pairwise_likelihood(
  params: types.Params,
  completions: types.Completions,
  *,
  model: models.Model,
  template: template_lib.Template,
  rng: jax.Array | None = None,
) -> types.Labelled:
  """Compares the log-likelihoods of two completions, each beside the other.

    s_ik = log p(y_i | x, y_k) - log p(y_k | x, y_i)
    P(y_i > y_k | x) = sigmoid(s_ik),   r_i = mean over k of s_ik

  s is skew-symmetric, so swapping a pair gives exactly 1 - P, and preferences
  may be cyclic, which no reward can express. A language model that does not
  look at the other completion is `likelihood`. Like that judge, this one
  starts from the supervised policy. For K = 2, r_1 - r_2 = s_12, so
  `algorithms.reward_step` trains it by the likelihood of preferences. For
  larger K, r_i is the mean score against the other samples. Each of the
  K (K - 1) ordered pairs is read once.

  Args:
    params: Parameters of `model`.
    completions: K >= 2 completions of each of B prompts.
    model: A language model.
    template: The template that joins the prompt, as `text`, with the other
      completion, as `first`.
    rng: Key for dropout, consumed. None disables dropout.

  Returns:
    Matrix [B, K, K], rewards [B, K] in nats, and the preference [B] if K = 2.

  Raises:
    ValueError: K is 1.
  """
  learned.check_several(completions, 'A pairwise likelihood')
  tokens = completions.completions
  b, k, t = tokens.ids.shape
  ones, others = map(
    list, zip(*itertools.permutations(range(k), 2), strict=True)
  )
  n = len(ones)
  pick = lambda which: jax.tree.map(
    lambda x: x[:, jnp.array(which)].reshape(b * n, t), tokens
  )
  text = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), completions.prompts)
  given = types.Completions(
    prompts=template.join(text=text, first=pick(others)),
    completions=jax.tree.map(lambda x: x[:, None], pick(ones)),
  )
  log_probs, _ = sampling.log_probs(model, params, given, rng=rng)
  found = jnp.sum(log_probs, axis=-1).reshape(b, n)
  beside = jnp.zeros((b, k, k)).at[:, ones, others].set(found)
  return learned.from_scores(completions, beside - jnp.swapaxes(beside, 1, 2))
