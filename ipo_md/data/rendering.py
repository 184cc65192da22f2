"""Applies a chat template to the examples of a task, a chunk at a time.

A task yields its texts beside their tokens, under the names that seqio uses,
and where it has them what the rows of its files hold:

  inputs_pretokenized   [] plain form of the prompt
  targets_pretokenized  [] or [K] texts of the completions
  conversation          [] turns of the prompt, as `conversations.write` writes
                        them; empty for a single turn of the user
  place                 [] file and row, for messages
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import Any

from etils import epy
import numpy as np

from ipo_md.core import row_files
from ipo_md.data import chat as chat_lib
from ipo_md.data import conversations

with epy.lazy_imports():
  import tensorflow as tf

INPUTS, TARGETS = 'inputs_pretokenized', 'targets_pretokenized'
CONVERSATION, PLACE = 'conversation', 'place'

Columns = dict[str, np.ndarray]


def names(chat: chat_lib.Chat | None) -> tuple[str, ...]:
  """Returns the features with texts that a chat template needs, or none."""
  read = (CONVERSATION, PLACE)
  return read if chat is None else (*read, INPUTS, TARGETS)


def check(features: Mapping[str, Any], task: str) -> None:
  """Raises a ValueError if a task yields no texts for a chat template."""
  needed = [INPUTS, TARGETS] if 'targets' in features else [INPUTS]
  for name in needed:
    if name not in features:
      raise ValueError(
        f'Task {task} yields tokens without their text ({name}), which a chat '
        'template needs. seqio.preprocessors.tokenize and text_tasks.tokenise '
        'yield it. CHAT_TEMPLATE = None applies no template.'
      )


class Renderer:
  """Renders the chunks of one split of a task and leaves out bad rows.

  Args:
    chat: The chat template, or None to refuse conversations of several turns.
    place: Task and split, for messages.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows that are left out.
  """

  def __init__(self, chat: chat_lib.Chat | None, place: str, max_bad_rows: int):
    self._chat, self._place, self._allowed = chat, place, max_bad_rows
    self._bad: list[str] = []
    self._dropped = 0  # by the reader of the files
    self._carried = 0  # rows that were dropped since the last one that was kept

  def __call__(
    self, chunk: Columns, batch: Mapping[str, Any], k: int, first: int
  ) -> Columns:
    """Returns a chunk with the tokens of the chat template.

    Args:
      chunk: Columns of n examples, as `examples.chunks` describes them.
      batch: The same examples with their texts.
      k: K, or 0 if there are no targets.
      first: Number of examples before this chunk.

    Returns:
      Columns of those examples that are good.

    Raises:
      ValueError: There are more bad rows than MAX_BAD_ROWS.
    """
    texts = {
      name: _strings(batch[name]) for name in names(self._chat) if name in batch
    }
    rows = len(chunk['inputs_lengths'])
    self._dropped += int(chunk.get('rows_dropped', np.zeros(1)).sum())
    found = self._rows(texts, rows)
    bad = [i for i, r in enumerate(found) if isinstance(r, row_files.BadRow)]
    places = texts.get(PLACE, [''] * rows)
    for i in bad:
      place = places[i] or f'{self._place}, row {first + i}'
      self._bad.append(f'{place}: {found[i]}')
      if len(self._bad) + self._dropped > self._allowed:
        raise ValueError(row_files.refusal(self._bad, self._allowed))
    if self._chat is not None:
      chunk = _replaced(chunk, found, k)
    return self._select(chunk, bad, k) if bad or self._carried else chunk

  def report(self) -> None:
    """Lists the bad rows that were left out."""
    row_files.report(self._bad)

  def _rows(self, texts: Mapping[str, Sequence[Any]], rows: int) -> list[Any]:
    """Returns a row of tokens, None or a reason for each example."""
    written = texts.get(CONVERSATION, [''] * rows)
    if self._chat is None:
      return [_several_turns(text) if text else None for text in written]
    prompts = [
      conversations.read(text)[1] if text else conversations.of_prompt(prompt)
      for text, prompt in zip(written, texts[INPUTS], strict=True)
    ]
    completions = texts.get(TARGETS, [[]] * rows)
    completions = [[c] if isinstance(c, str) else c for c in completions]
    return self._chat.rows(prompts, completions)

  def _select(self, chunk: Columns, bad: Sequence[int], k: int) -> Columns:
    """Leaves out rows, and adds their number to `rows_dropped`."""
    rows = len(chunk['inputs_lengths'])
    keep = ~np.isin(np.arange(rows), bad)
    out = {}
    for name, values in chunk.items():
      mask = keep
      if name == 'targets_lengths':
        mask = np.repeat(keep, k)
      elif name in ('inputs', 'targets', 'rendered'):
        mask = np.repeat(keep, k) if name == 'targets' else keep
        mask = np.repeat(mask, chunk[f'{name}_lengths'])
      out[name] = values[mask]
    before = chunk.get('rows_dropped', np.zeros(rows, np.int64))
    self._carried += len(bad) + int(before[~keep].sum())
    out['rows_dropped'] = before[keep].copy()
    if keep.any():
      out['rows_dropped'][0] += self._carried
      self._carried = 0
    return out


def _several_turns(written: str) -> row_files.BadRow:
  field, messages = conversations.read(written)
  roles = ', '.join(m['role'] for m in messages)
  return row_files.BadRow(
    f'field {field!r} has the turns {roles} before the completion. Only a chat '
    'template reads more than one turn of the user: set CHAT_TEMPLATE, as '
    'gin/chat/from_tokenizer.gin does'
  )


def _replaced(chunk: Columns, found: Sequence[Any], k: int) -> Columns:
  """Returns the columns with the tokens of the template; bad rows are empty."""
  empty = chat_lib.Row(prompt=(), completions=((),) * k, found={})
  rows = [r if isinstance(r, chat_lib.Row) else empty for r in found]
  out = dict(chunk)
  out['rendered'], out['rendered_lengths'] = _flat([r.prompt for r in rows])
  if k:
    completions = [
      (*row.completions, *((),) * (k - len(row.completions))) for row in rows
    ]
    out['targets'], out['targets_lengths'] = _flat(
      list(itertools.chain.from_iterable(completions))
    )
  for name in (
    'prompts_cut',
    'prompts_turns_dropped',
    'prompts_trimmed',
    'completions_trimmed',
  ):
    out[name] = np.array([row.found.get(name, 0) for row in rows], np.int64)
  return out


def _flat(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens of all rows and the length of each."""
  lengths = np.array([len(row) for row in rows], np.int64)
  ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
  return ids, lengths


def _strings(batched: tf.Tensor | tf.RaggedTensor) -> list[Any]:
  """Returns a batch of texts, or of lists of texts."""
  values = (
    batched.to_list()
    if isinstance(batched, tf.RaggedTensor)
    else batched.numpy().tolist()
  )
  decode = lambda x: x.decode() if isinstance(x, bytes) else [*map(decode, x)]
  return [decode(value) for value in values]


def of_conversations(
  prompts: Sequence[chat_lib.Conversation],
  places: Sequence[str],
  chat: chat_lib.Chat | None,
) -> Columns:
  """Returns the columns that a chat template adds to bare prompts.

  Args:
    prompts: N conversations.
    places: File and row of each, for messages.
    chat: The chat template, or None to refuse several turns.

  Raises:
    ValueError: A conversation cannot be rendered.
  """
  if chat is None:
    found = [
      None
      if conversations.is_prompt(p)
      else _several_turns(conversations.write(p, 'prompt'))
      for p in prompts
    ]
  else:
    found = chat.rows(prompts, [()] * len(prompts))
  for place, row in zip(places, found, strict=True):
    if isinstance(row, row_files.BadRow):
      raise ValueError(f'{place}: {row}.')
  if chat is None:
    return {}
  columns = _replaced({}, found, 0)
  del columns['completions_trimmed']
  return columns
