"""A judge's prompt, joined on the device out of token segments."""

from collections.abc import Sequence
import dataclasses
import re

import numpy as np
import seqio

from ipo_md import data
from ipo_md import sampling
from ipo_md.core import types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
  """A judge's prompt, joined on the device out of token segments.

    '{text} summary 1 - {first} summary 2 - {second} better -'

  The constant segments are tokenised one by one and all segments are joined as
  tokens: SentencePiece gives other tokens for a concatenated text. The text
  alone is cut, at its end.

  Attributes:
    vocabulary: of policy and judge alike.
    prompt: constants around {text}, {first} and, for a comparator, {second}.
    length: JUDGE_LENGTH, tokens of the joined prompt, EOS included.
    prompt_format: of the policy; what it adds to a prompt is taken off again.
  """

  vocabulary: seqio.Vocabulary
  prompt: str
  length: int
  prompt_format: data.PromptFormat

  def __post_init__(self):
    names = re.findall(r'{(\w+)}', self.prompt)
    if names not in (['text', 'first'], ['text', 'first', 'second']):
      raise ValueError(
        f'Template.prompt {self.prompt!r} has the fields {names}, not text, '
        'first and perhaps second.'
      )

  def join(self, **fields: types.Tokens) -> types.Tokens:
    """text, first, second: [B, *] each -> [B, length] the judge's prompt."""
    eos = self.vocabulary.eos_id
    segments = []
    for part in re.split(r'({\w+})', self.prompt):
      if part.startswith('{'):
        tokens = fields[part[1:-1]]
        if part == '{text}':
          text = len(segments)
          tokens = self.prompt_format.bare(tokens)
        segments.append(sampling.without(tokens, (eos,)))
      elif part.strip():
        segments.append(_constant(self.vocabulary.encode(part.strip())))
    segments.append(_constant([eos]))
    return sampling.join(segments, length=self.length, cut=text)

  def token(self, word: str) -> int:
    """The id of a word that must be a single token, such as an answer."""
    ids = self.vocabulary.encode(word)
    if len(ids) != 1:
      raise ValueError(
        f'The answer {word!r} is {ids} in {self.vocabulary}; an answer must be '
        'a single token.'
      )
    return ids[0]


def _constant(ids: Sequence[int]) -> types.Tokens:
  ids = np.array([ids], np.int32)
  return types.Tokens(ids=ids, mask=np.ones(ids.shape, bool))
