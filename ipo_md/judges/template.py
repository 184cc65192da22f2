"""The prompt of a judge, joined on the device from token segments."""

from collections.abc import Sequence
import dataclasses
import re

import numpy as np

from ipo_md import data
from ipo_md import sampling
from ipo_md.core import types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
  """The prompt of a judge, joined on the device from token segments.

    '{text} summary 1 - {first} summary 2 - {second} better -'

  Each constant segment is tokenised by itself, and the segments are joined as
  tokens, because SentencePiece tokenises a concatenated text differently. If
  the prompt is too long, only the text is truncated, at its end.

  Attributes:
    vocabulary: The vocabulary of both policy and judge.
    prompt: Constants around {text}, {first} and, for a comparator, {second}.
    length: JUDGE_LENGTH, the tokens of the joined prompt, including EOS.
    prompt_format: The policy's prompt format. What it adds to a prompt is
      removed again. Of a conversation that a chat template rendered, {text} is
      the plain form.

  Raises:
    ValueError: The prompt has other fields.
  """

  vocabulary: types.Vocabulary
  prompt: str
  length: int
  prompt_format: data.PromptFormat

  def __post_init__(self):
    names = re.findall(r'{(\w+)}', self.prompt)
    if names not in (['text', 'first'], ['text', 'first', 'second']):
      raise ValueError(
        f'Template.prompt {self.prompt!r} has the fields {names}. It needs '
        'text, first and, for a comparator, second, in this order.'
      )

  def join(self, **fields: types.Tokens) -> types.Tokens:
    """Joins the prompt of each row.

    Args:
      **fields: [B, *] tokens of text, first and, for a comparator, second.

    Returns:
      [B, length] tokens.

    Raises:
      ValueError: The prompt may exceed `length` even without the text.
    """
    eos = self.vocabulary.eos_id
    if eos is None:
      raise ValueError(f'{self.vocabulary} has no EOS, which ends the prompt.')
    segments = []
    for part in re.split(r'({\w+})', self.prompt):
      if part.startswith('{'):
        tokens = fields[part[1:-1]]
        if part == '{text}':
          text = len(segments)
          tokens = self.prompt_format.bare(tokens)
        segments.append(sampling.without(tokens, (eos,)))
      elif part.strip():
        ids = data.encode_template(self.vocabulary, part.strip())
        segments.append(_constant(ids))
    segments.append(_constant([eos]))
    return sampling.join(segments, length=self.length, cut=text)

  def token(self, word: str) -> int:
    """Returns the id of a word that is a single token, such as an answer.

    Raises:
      ValueError: The word is not a single token.
    """
    ids = data.encode_template(self.vocabulary, word)
    if len(ids) != 1:
      raise ValueError(
        f'The answer {word!r} is {ids} in {self.vocabulary}; an answer must be '
        'a single token.'
      )
    return ids[0]


def _constant(ids: Sequence[int]) -> types.Tokens:
  array = np.array([ids], np.int32)
  return types.Tokens(
    ids=types.as_leaf(array), mask=types.as_leaf(np.ones(array.shape, bool))
  )
