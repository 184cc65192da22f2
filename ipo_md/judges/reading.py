"""Texts as the tokens of a judge that has a tokenizer of its own.

  prefix | the whole text, tokenised as one | suffix

The whole text is tokenised at once, as transformers does, because the tokens at
the seam of prompt and completion depend on both. What K completions of a prompt
have in common at the front is the prompt that the judge reads once.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import re

from etils import epy
import numpy as np

from ipo_md import data
from ipo_md.core import row_files
from ipo_md.core import types
from ipo_md.data import chat_template
from ipo_md.data import encoding
from ipo_md.data import special_marks

with epy.lazy_imports():
  from ipo_md.data import hf_vocabulary

_FIELDS = ('text', 'first')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """Turns a prompt and its completions into the tokens of a judge.

  Special tokens are read where `text` or the chat template writes them. Those
  that a prompt or a completion writes out are text, so that a policy cannot
  write the special tokens of its judge.

  Attributes:
    vocabulary: The judge's own vocabulary.
    text: JUDGE_TEXT, the text of a prompt {text} with a completion {first}.
      None if a chat template writes it.
    template: The judge's chat template, which gets the prompt as the turn of a
      user and the completion as that of the assistant, if `text` is None.
    prefix: Token ids before the text, such as BOS.
    suffix: Token ids after the text.
    max_length: JUDGE_MAX_LENGTH, the most tokens of a text. Of a longer one the
      prompt is cut at its end.
    pad_id: The id of padding. Tokens with this id at the end of a text are left
      out, as transformers does when it looks for the last token.

  Raises:
    ValueError: The text has other fields.
  """

  vocabulary: types.Vocabulary
  text: str | None = None
  template: chat_template.ChatTemplate | None = None
  prefix: tuple[int, ...] = ()
  suffix: tuple[int, ...] = ()
  max_length: int
  pad_id: int | None = None

  def __post_init__(self):
    if self.text is None:
      return
    names = re.findall(r'{(\w+)}', self.text)
    if tuple(names) != _FIELDS:
      raise ValueError(
        f'JUDGE_TEXT {self.text!r} has the fields {names}. It needs text and '
        'first, the prompt and its completion, in this order.'
      )

  def __call__(
    self, prompt: str, completions: Sequence[str]
  ) -> tuple[list[list[int]], int]:
    """Tokenises K completions with their prompt.

    Returns:
      K rows of token ids, and the number of rows whose prompt was cut.

    Raises:
      ValueError: A completion exceeds `max_length` even without its prompt.
    """
    rows, cut = [], 0
    for completion in completions:
      ids = self._ids(prompt, completion)
      if len(ids) > self.max_length:
        ids = self._shortened(prompt, completion, len(ids))
        cut += 1
      while len(ids) > 1 and ids[-1] == self.pad_id:
        ids.pop()
      rows.append(ids)
    return rows, cut

  def _ids(self, prompt: str, completion: str) -> list[int]:
    text = self._filled(prompt, completion)
    (ids,) = data.encode(self.vocabulary, [text])
    return [*self.prefix, *ids, *self.suffix]

  def _filled(self, prompt: str, completion: str) -> str:
    """Returns the whole text, in which special tokens have hidden names."""
    marks = self._marks
    # A text has no NUL character, because hidden names have them.
    prompt, completion = (
      marks.put(marks.take(t)) for t in (prompt, completion)
    )
    if self.text is not None:
      fields = {'{text}': prompt, '{first}': completion}
      parts = re.split(r'({\w+})', self.text)
      raw = ''.join(fields.get(part, part) for part in parts)
    else:
      assert self.template is not None
      messages = [
        {'role': 'user', 'content': prompt},
        {'role': 'assistant', 'content': completion},
      ]
      try:
        raw = self.template.render(messages, ask=False)
      except row_files.BadRow as error:
        raise ValueError(f'The prompt {prompt[:80]!r}: {error}.') from None
    return marks.read(raw)

  @functools.cached_property
  def _marks(self) -> special_marks.Marks:
    if not isinstance(self.vocabulary, hf_vocabulary.TokenizerVocabulary):
      return special_marks.Marks({})
    return special_marks.Marks(encoding.special_tokens(self.vocabulary))

  def _shortened(self, prompt: str, completion: str, length: int) -> list[int]:
    """Returns the tokens of a text whose prompt is cut until it fits."""
    (tokens,) = data.encode(self.vocabulary, [prompt])
    left = len(tokens)
    while length > self.max_length and left:
      left = max(0, left - (length - self.max_length))
      shorter = self.vocabulary.decode(tokens[:left]).rstrip('\ufffd')
      ids = self._ids(shorter, completion)
      length = len(ids)
    if length > self.max_length:
      raise ValueError(
        f'JUDGE_MAX_LENGTH is {self.max_length}, but a completion takes '
        f'{length} tokens even without its prompt: {completion[:80]!r}. Raise '
        'JUDGE_MAX_LENGTH, or lower MAX_NEW_TOKENS.'
      )
    return ids


def grouped(rows: Sequence[Sequence[Sequence[int]]]) -> types.Completions:
  """Splits the rows of N prompts where their K completions begin to differ.

    a b c d      prompt  a b   completions  c d
    a b e                                   e .

  A causal model reads the same tokens wherever they are split. A completion may
  be empty, but no prompt is.

  Args:
    rows: N lists of K rows of token ids.

  Returns:
    Prompts [N, P] and completions [N, K, T]. P and T are powers of two of at
    least 16, so that a program is compiled for few shapes.

  Raises:
    ValueError: The rows of a prompt have no token in common at the front.
  """
  shared = [_shared(group) for group in rows]
  if 0 in shared:
    first = [list(row[:4]) for row in rows[shared.index(0)]]
    raise ValueError(
      'The texts of a prompt begin with different tokens in the vocabulary of '
      f'the judge, or are empty: {first}. An empty prompt needs a JUDGE_TEXT '
      'that begins with a constant.'
    )
  longest = max(
    len(row) - n for n, group in zip(shared, rows, strict=True) for row in group
  )
  width = _width(max(shared)), _width(longest)
  k = len(rows[0])
  prompts = _empty((len(rows), width[0]))
  completions = _empty((len(rows), k, width[1]))
  for i, (n, group) in enumerate(zip(shared, rows, strict=True)):
    prompts.ids[i, :n] = group[0][:n]
    prompts.mask[i, :n] = True
    for j, row in enumerate(group):
      completions.ids[i, j, : len(row) - n] = row[n:]
      completions.mask[i, j, : len(row) - n] = True
  return types.Completions(
    prompts=_tokens(prompts), completions=_tokens(completions)
  )


def _shared(group: Sequence[Sequence[int]]) -> int:
  """Returns the number of tokens that all rows have at the front."""
  count = 0
  for column in zip(*group, strict=False):
    if any(token != column[0] for token in column):
      break
    count += 1
  return count


def _width(longest: int) -> int:
  return max(16, 1 << (longest - 1).bit_length())


@dataclasses.dataclass
class _Arrays:
  ids: np.ndarray
  mask: np.ndarray


def _empty(shape: tuple[int, ...]) -> _Arrays:
  return _Arrays(np.zeros(shape, np.int32), np.zeros(shape, bool))


def _tokens(arrays: _Arrays) -> types.Tokens:
  return types.Tokens(
    ids=types.as_leaf(arrays.ids), mask=types.as_leaf(arrays.mask)
  )
