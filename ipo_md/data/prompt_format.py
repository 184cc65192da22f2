"""The tokens that a model reads around the bare prompt of a task."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
from typing import Literal

import numpy as np

from ipo_md.core import identity
from ipo_md.core import progress
from ipo_md.core import types
from ipo_md.data import chat as chat_lib
from ipo_md.data import chat_template
from ipo_md.data import encoding


@identity.reads(template=chat_template.identify)
@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """The tokens that a model reads around the bare prompt of a task.

    prefix | prompt | closing | suffix | padding

  If the four parts together are too long, only the prompt is truncated. A chat
  template writes the whole prompt instead, and prefix and suffix are not used.

  Attributes:
    prefix: Token ids and texts before the prompt, such as (BOS,) for Llama. The
      gin file of the model sets it.
    suffix: Token ids and texts at the end, such as (EOS,) for T5. The gin file
      of the model sets it.
    closing: Text that asks for the completion, such as 'TL;DR:'. The gin file
      of the task sets it. A chat template has it on a line of its own at the
      end of the last turn.
    vocabulary: Vocabulary of the texts. It is not needed if there are none.
    cut_prompts: The end at which a long prompt is truncated. The gin file of
      the task sets it.
    eos_id: EOS_ID, the token at which the model stops, or several, of which the
      first ends the texts of the data set. None skips the check against its
      vocabulary.
    template: CHAT_TEMPLATE, the path of a chat template: the folder of a
      tokenizer, or a file. None if prefix and suffix are the format.
    template_date: CHAT_DATE, the date that the template sees as today's, as
      'YYYY-MM-DD'. None is the real one.
    template_arguments: Further values for the template, such as
      {'enable_thinking': False}.
  """

  prefix: tuple[int | str, ...] = ()
  suffix: tuple[int | str, ...] = ()
  closing: str = ''
  vocabulary: types.Vocabulary | None = None
  cut_prompts: Literal['front', 'end'] = 'end'
  eos_id: types.EosId | None = None
  template: str | None = None
  template_date: str | None = None
  template_arguments: Mapping[str, Any] | None = dataclasses.field(
    default=None, hash=False
  )

  def __post_init__(self):
    if self.cut_prompts not in ('front', 'end'):
      raise ValueError(
        f"PromptFormat.cut_prompts is {self.cut_prompts!r}. It must be 'front' "
        "or 'end'."
      )
    texts = [part for part in self._parts if isinstance(part, str)]
    if self.template is not None:
      if not isinstance(self.template_arguments or {}, Mapping):
        raise ValueError(
          f'PromptFormat.template_arguments is {self.template_arguments!r}. It '
          "must be a dictionary such as {'enable_thinking': False}, or None."
        )
      return
    if texts and self.vocabulary is None:
      raise ValueError(
        f'PromptFormat has the text {texts[0]!r} and needs a '
        'PromptFormat.vocabulary (VOCABULARY).'
      )
    for part in self._parts:
      is_id = isinstance(part, int) and not isinstance(part, bool) and part >= 0
      if not is_id and not isinstance(part, str):
        raise ValueError(
          f'PromptFormat has the part {part!r} in prefix or suffix. A part is '
          'a text or a token id, a whole number of at least 0.'
        )

  @property
  def template_text(self) -> str | None:
    """The text of the chat template, or None if there is none."""
    return None if self.template is None else chat_template.text(self.template)

  def chat(
    self, vocabulary: types.Vocabulary, length: int
  ) -> chat_lib.Chat | None:
    """Reads the chat template, or returns None if there is none.

    Args:
      vocabulary: Vocabulary of the model.
      length: P, the most tokens of a prompt.

    Raises:
      ValueError: The template or its date cannot be read, or it ends a turn
        with another token than EOS.
    """
    if self.template is None:
      return None
    chat = chat_lib.Chat(
      template=chat_template.read(
        self.template,
        vocabulary,
        date=self.template_date,
        arguments=self.template_arguments,
      ),
      vocabulary=vocabulary,  # pyright: ignore[reportArgumentType]
      length=length,
      closing=self.closing,
      cut_prompts=self.cut_prompts,
      eos_ids=() if self.eos_id is None else types.eos_ids(self.eos_id),
    )
    chat.check_end()
    _announce(chat.template.path)
    return chat

  @property
  def _parts(self) -> tuple[int | str, ...]:
    if self.template is not None:
      return ()
    closing = (self.closing,) if self.closing else ()
    return (*self.prefix, *closing, *self.suffix)

  @functools.cached_property
  def opening(self) -> tuple[int, ...]:
    """Token ids of the prefix."""
    return self._encode(self.prefix if self.template is None else ())

  @functools.cached_property
  def ending(self) -> tuple[int, ...]:
    """Token ids of the closing and the suffix."""
    return self._encode(self._parts[len(self.prefix) :])

  def _encode(self, parts: Sequence[int | str]) -> tuple[int, ...]:
    ids = []
    for part in parts:
      if isinstance(part, str):
        assert self.vocabulary is not None  # as __post_init__ requires
        ids += encoding.encode_template(self.vocabulary, part)
      else:
        ids.append(part)
    return tuple(ids)

  def room(self, length: int) -> int:
    """Returns the number of prompt tokens that fit into `length` tokens.

    Raises:
      ValueError: There is no room for a prompt.
    """
    room = length - len(self.opening) - len(self.ending)
    if room < 1:
      raise ValueError(
        f"TASK_FEATURE_LENGTHS['inputs'] is {length}, which leaves no room "
        f'for a prompt between the prefix {self.opening} and the ending '
        f'{self.ending} (PromptFormat).'
      )
    return room

  def tokens(self, prompts: Sequence[np.ndarray], length: int) -> types.Tokens:
    """Formats, truncates and pads prompts.

    Args:
      prompts: B bare prompts of any length.
      length: P, the length of the result.

    Returns:
      [B, P] tokens.
    """
    room = self.room(length)
    rows = []
    for prompt in prompts:
      cut = prompt[-room:] if self.cut_prompts == 'front' else prompt[:room]
      rows.append(np.concatenate([self.opening, cut, self.ending]))
    return pad(rows, length)

  def rendered(
    self,
    prompts: Sequence[np.ndarray],
    bare: Sequence[np.ndarray],
    length: int,
  ) -> types.Prompts:
    """Pads prompts that a chat template rendered.

    Args:
      prompts: B rendered prompts of at most P tokens.
      bare: Their plain form, of any length.
      length: P, the length of the result.

    Returns:
      [B, P] tokens.
    """
    front = self.cut_prompts == 'front'
    cut = [row[-length:] if front else row[:length] for row in bare]
    tokens = pad(prompts, length)
    return types.Prompts(
      ids=tokens.ids, mask=tokens.mask, bare=pad(cut, length)
    )

  def bare(self, prompts: types.Tokens) -> types.Tokens:
    """Masks everything but the bare prompts. Can be traced by JAX.

    Args:
      prompts: [..., P] formatted prompts.

    Returns:
      [..., P] the same ids, with a mask that is True on the bare prompt; or
      the plain form of what a chat template rendered.
    """
    if isinstance(prompts, types.Prompts):
      return prompts.bare
    position = np.arange(prompts.mask.shape[-1])
    end = prompts.mask.sum(axis=-1, keepdims=True) - len(self.ending)
    within = (position >= len(self.opening)) & (position < end)
    return prompts.replace(mask=prompts.mask & within)


@functools.cache
def _announce(path: str) -> None:
  progress.say(f'Prompts are rendered by the chat template {path}.')


def pad(rows: Sequence[np.ndarray], length: int) -> types.Tokens:
  """Pads N rows of token ids at the right to [N, length] tokens."""
  ids = np.zeros((len(rows), length), np.int32)
  sizes = np.array([len(row) for row in rows])
  for i, row in enumerate(rows):
    ids[i, : len(row)] = row
  return types.Tokens(
    ids=types.as_leaf(ids),
    mask=types.as_leaf(np.arange(length) < sizes[:, None]),
  )
