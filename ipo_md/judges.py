"""Judges: (params, completions) -> what they think of the completions.

A judge is a function with its network bound by gin:

  judge(params, completions: types.Completions) -> types.Labelled

`reward_model` scores each completion alone; `comparator` reads two at once and
answers one of two tokens. Both run on the device, inside the train step.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import seqio

from ipo_md import sequences
from ipo_md import types
from ipo_md.models import model as model_lib

Judge = Callable[[types.Params, types.Completions], types.Labelled]


def reward_model(
  params: types.Params,
  completions: types.Completions,
  *,
  model: model_lib.Model,
  rng: jax.Array | None = None,
) -> types.Labelled:
  """Scores each completion by itself.

    P(y_1 > y_2 | x) = sigmoid(r(x, y_1) - r(x, y_2))        (Bradley-Terry)

  Args:
    params: parameters of `model`, which has a reward head.
    completions: K completions of each of B prompts.
    model: reads the prompt once and each completion after it.
    rng: key for dropout, consumed; None: no dropout.

  Returns:
    rewards [B, K] in nats, and the preference [B] if K = 2.
  """
  keys = (None, None) if rng is None else jax.random.split(rng)
  context = model.encode(params, completions.prompts, rng=keys[0])
  tokens = completions.completions
  inputs = sequences.reading_inputs(context.start, tokens.ids)
  hidden, _, _ = model.decode(params, inputs, context, rng=keys[1])
  rewards = model.reward(params, hidden[:, :, 1:], tokens.mask)
  preference = None
  if rewards.shape[1] == 2:
    preference = jax.nn.sigmoid(rewards[:, 0] - rewards[:, 1])
  return types.Labelled(
    completions=completions,
    completion_mask=jnp.ones(rewards.shape, bool),
    preference=preference,
    rewards=rewards,
  )


@dataclasses.dataclass(frozen=True)
class Template:
  """The comparator's prompt, as token segments around text and summaries.

    instruction  text  label_1  summary 1  label_2  summary 2  question

  Segments are tokenised one by one and joined as tokens: SentencePiece gives
  other tokens for a concatenated text. The text alone is cut, at its end.

  Attributes:
    vocabulary: of policy and judge alike.
    instruction: before the text.
    label_1: before the first summary.
    label_2: before the second summary.
    question: after the second summary.
    answers: what the judge says, each a single token: for the first summary,
      for the second.
    length: tokens of the joined prompt, EOS included.
    special_ids: dropped from the policy's prompt and completions, such as the
      EOS that the policy's format adds.
  """

  vocabulary: seqio.Vocabulary
  instruction: str
  label_1: str
  label_2: str
  question: str
  answers: tuple[str, str]
  length: int
  special_ids: Sequence[int] = ()

  def __post_init__(self):
    for answer in self.answers:
      if len(self.vocabulary.encode(answer)) != 1:
        raise ValueError(
          f'Template.answers: {answer!r} is '
          f'{self.vocabulary.encode(answer)} in {self.vocabulary}; an answer '
          'must be a single token.'
        )

  @property
  def answer_ids(self) -> tuple[int, int]:
    return tuple(self.vocabulary.encode(a)[0] for a in self.answers)

  def join(
    self, text: types.Tokens, first: types.Tokens, second: types.Tokens
  ) -> types.Tokens:
    """[B, *] text and summaries -> [B, length] the judge's prompt."""
    special = (*self.special_ids, self.vocabulary.eos_id)
    text, first, second = (
      sequences.without(t, special) for t in (text, first, second)
    )
    segments = (
      self._constant(self.instruction),
      text,
      self._constant(self.label_1),
      first,
      self._constant(self.label_2),
      second,
      self._constant(self.question, [self.vocabulary.eos_id]),
    )
    return sequences.join(segments, length=self.length, cut=1)

  def _constant(self, text: str, suffix: Sequence[int] = ()) -> types.Tokens:
    ids = np.array([*self.vocabulary.encode(text), *suffix], np.int32)[None]
    return types.Tokens(ids=ids, mask=np.ones(ids.shape, bool))


def comparator_log_probs(
  params: types.Params,
  completions: types.Completions,
  *,
  model: model_lib.Model,
  template: Template,
  rng: jax.Array | None = None,
) -> jax.Array:
  """Log-probabilities of the two answers on both orders of a pair.

  Training and judging both read this, so they see identical tokens.

  Args:
    params: parameters of `model`.
    completions: K = 2 completions of each of B prompts.
    model: a language model.
    template: its prompt.
    rng: key for dropout, consumed; None: no dropout.

  Returns:
    [B, 2, 2]: order (y_1 first, y_2 first) x answer (first, second), over the
    whole vocabulary.
  """
  if completions.completions.ids.shape[1] != 2:
    raise ValueError(
      f'A comparator judges K = 2 completions of a prompt, not '
      f'{completions.completions.ids.shape[1]} (MIXTURE_COEFS has one entry '
      'for each).'
    )
  y_1, y_2 = (
    jax.tree.map(lambda x, i=i: x[:, i], completions.completions)
    for i in range(2)
  )
  both = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b]),
    template.join(completions.prompts, y_1, y_2),
    template.join(completions.prompts, y_2, y_1),
  )
  b = y_1.ids.shape[0]
  answers = types.Completions(
    prompts=both,
    completions=types.Tokens(
      ids=jnp.broadcast_to(
        jnp.array(template.answer_ids, jnp.int32)[:, None], (2 * b, 2, 1)
      ),
      mask=jnp.ones((2 * b, 2, 1), bool),
    ),
  )
  log_probs, _ = sequences.log_probs(model, params, answers, rng=rng)
  return jnp.swapaxes(log_probs[..., 0].reshape(2, b, 2), 0, 1)


def comparator(
  params: types.Params,
  completions: types.Completions,
  *,
  model: model_lib.Model,
  template: Template,
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

  Returns:
    preference [B].
  """
  log_probs = comparator_log_probs(
    params, completions, model=model, template=template
  )
  p = jax.nn.sigmoid(log_probs[..., 0] - log_probs[..., 1])
  return types.Labelled(
    completions=completions,
    completion_mask=jnp.ones((p.shape[0], 2), bool),
    preference=(p[:, 0] + 1 - p[:, 1]) / 2,
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
