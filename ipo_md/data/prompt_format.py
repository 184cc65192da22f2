"""What a model reads around the bare prompt of a task."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Literal

import numpy as np
import seqio

from ipo_md.core import types


@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """What a model reads around a task's bare prompt.

    prefix | prompt | closing | suffix | padding

  The prompt alone is cut where all four exceed the length.

  Attributes:
    prefix: token ids and texts; (BOS,) for Llama. Set by the model's gin file.
    suffix: token ids and texts; (EOS,) for T5. Set by the model's gin file.
    closing: text that asks for the completion, such as 'TL;DR:'. Set by the
      task's gin file.
    vocabulary: of the texts, not needed without them.
    cut_prompts: the end that long prompts lose. Set by the task's gin file.
    eos_id: EOS_ID, at which the model stops; None: not checked.
  """

  prefix: tuple[int | str, ...] = ()
  suffix: tuple[int | str, ...] = ()
  closing: str = ''
  vocabulary: seqio.Vocabulary | None = None
  cut_prompts: Literal['front', 'end'] = 'end'
  eos_id: int | None = None

  def __post_init__(self):
    if self.cut_prompts not in ('front', 'end'):
      raise ValueError(
        f"PromptFormat.cut_prompts is {self.cut_prompts!r}, not 'front' or "
        "'end'."
      )
    texts = [part for part in self._parts if isinstance(part, str)]
    if texts and self.vocabulary is None:
      raise ValueError(
        f'PromptFormat has the text {texts[0]!r} and needs a '
        'PromptFormat.vocabulary (VOCABULARY).'
      )

  @property
  def _parts(self) -> tuple[int | str, ...]:
    closing = (self.closing,) if self.closing else ()
    return (*self.prefix, *closing, *self.suffix)

  @functools.cached_property
  def opening(self) -> tuple[int, ...]:
    """Token ids of the prefix."""
    return self._encode(self.prefix)

  @functools.cached_property
  def ending(self) -> tuple[int, ...]:
    """Token ids of closing and suffix."""
    return self._encode(self._parts[len(self.prefix) :])

  def _encode(self, parts: Sequence[int | str]) -> tuple[int, ...]:
    ids = []
    for part in parts:
      ids += self.vocabulary.encode(part) if isinstance(part, str) else [part]
    return tuple(ids)

  def room(self, length: int) -> int:
    """Tokens of a prompt that fit into `length`."""
    room = length - len(self.opening) - len(self.ending)
    if room < 1:
      raise ValueError(
        f"TASK_FEATURE_LENGTHS['inputs'] is {length}, which leaves no room "
        f'for a prompt between the prefix {self.opening} and the ending '
        f'{self.ending} (PromptFormat).'
      )
    return room

  def tokens(self, prompts: Sequence[np.ndarray], length: int) -> types.Tokens:
    """B bare prompts of any length -> [B, length], cut and padded."""
    room = self.room(length)
    rows = []
    for prompt in prompts:
      kept = prompt[-room:] if self.cut_prompts == 'front' else prompt[:room]
      rows.append(np.concatenate([self.opening, kept, self.ending]))
    return pad(rows, length)

  def bare(self, prompts: types.Tokens) -> types.Tokens:
    """[..., P] formatted prompts, the prompt alone unmasked; on the device."""
    position = np.arange(prompts.mask.shape[-1])
    end = prompts.mask.sum(axis=-1, keepdims=True) - len(self.ending)
    within = (position >= len(self.opening)) & (position < end)
    return prompts.replace(mask=prompts.mask & within)


def pad(rows: Sequence[np.ndarray], length: int) -> types.Tokens:
  ids = np.zeros((len(rows), length), np.int32)
  sizes = np.array([len(row) for row in rows])
  for i, row in enumerate(rows):
    ids[i, : len(row)] = row
  return types.Tokens(ids=ids, mask=np.arange(length) < sizes[:, None])
