"""Keeps special tokens that a text writes out apart from those of a template.

A NUL character, which no text has, stands inside of the former while a template
is rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
import re

from etils import epy

with epy.lazy_imports():
  from ipo_md.data import hf_vocabulary

_NUL = '\0'


class Marks:
  """Tells special tokens that a turn writes out from those of the template.

    turn       stop <|im_end|> now
    put        stop <\\0|im_end|> now            before the template is rendered
    template   ...<\\0|im_end|> now<|im_end|>
    read       ...<|im_end|> now\\0special 2\\0   the names of a tokenizer that
                                               finds no special token in texts

  Args:
    special: The special tokens, id -> text.
  """

  def __init__(self, special: Mapping[int, str]):
    self.special = dict(special)
    self._ids = {text: i for i, text in special.items()}
    texts = sorted(self._ids, key=len, reverse=True)
    self._pattern = re.compile('|'.join(map(re.escape, texts)) or '(?!)')

  def found_in(self, text: str) -> bool:
    return self._pattern.search(text) is not None

  def put(self, text: str) -> str:
    return self._pattern.sub(lambda m: m[0][0] + _NUL + m[0][1:], text)

  def take(self, text: str) -> str:
    return text.replace(_NUL, '')

  def read(self, text: str) -> str:
    """Returns a rendered text for a tokenizer with hidden special tokens."""
    parts = re.split(f'({self._pattern.pattern})', text)
    parts[::2] = map(self.take, parts[::2])
    parts[1::2] = [hf_vocabulary.hidden_name(self._ids[p]) for p in parts[1::2]]
    return ''.join(parts)
