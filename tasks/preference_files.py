"""Tasks on preference files, with one prompt per row.

  pairs       prompt, chosen, rejected         -> targets [2, T], preference 1
  rewards     prompt, completions[], scores[]  -> targets [K, T], rewards [K]
  supervised  either, or prompt, completion,   -> targets [T], the best one
              or messages

A prompt is a text or a list of messages. A completion is a text, or a list of
messages whose last one is of the assistant; those before it are the prompt, and
`prompt` may be absent or repeat them (as in ultrafeedback_binarized). Only a
chat template reads a prompt of several turns; without one it is a bad row.

Files are JSON lines, Parquet, or a folder that `datasets` saved. A gin file
binds one of the three as the task:

  PREFERENCE_TASK = @preference_files.pairs()
  preference_files.pairs.files = {'train': 'a.jsonl', 'validation': 'b.jsonl'}
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import math
import os
import re
from typing import Any

import seqio

from ipo_md.core import identity
from ipo_md.core import paths
from ipo_md.core import row_paths
from tasks.lib import json_lines
from tasks.lib import preference_rows
from tasks.lib import text_tasks

# Fields of a row that are read, or refused unless COLUMNS hides them.
_FIELDS = (
  'prompt',
  'messages',
  'system',
  'chosen',
  'rejected',
  'completion',
  'completions',
  'scores',
  'rewards',
  'score_chosen',
  'score_rejected',
  'label',
  'history',
  'tools',
)

# A path, or a list of pairs of a path and the rate at which it is mixed.
File = str | Sequence[tuple[str, float]]


@identity.reads(files=row_paths.identify)
def pairs(
  *,
  files: Mapping[str, File],
  max_bad_rows: int = 0,
  columns: Mapping[str, str | None] | None = None,
) -> str:
  """Registers a task of pairs, rows of `prompt, chosen, rejected`.

  Args:
    files: The path of each split: a file, a pattern such as 'train-*.parquet',
      or a folder. A list of (path, rate) mixes several.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows of a split that are left
      out and listed before reading fails.
    columns: COLUMNS, the name in the files of each field that has another one
      there, such as {'prompt': 'question'}; a.b is field b of a. None hides a
      field of the files.

  Returns:
    The name of the task.
  """
  return _add(
    'preference_pairs',
    _Files(files, max_bad_rows, columns),
    preference_rows.pair,
    text_tasks.PREFERENCE,
    scores=['preference'],
    targets_rank=2,
  )


@identity.reads(files=row_paths.identify)
def rewards(
  *,
  files: Mapping[str, File],
  k: int,
  max_bad_rows: int = 0,
  columns: Mapping[str, str | None] | None = None,
) -> str:
  """Registers a task of rewards, rows of `prompt, completions, scores`.

  `rewards` is another name of `scores`. Rows of `chosen` and `rejected` with
  `score_chosen` and `score_rejected` are rows of two completions.

  Args:
    files: The path of each split, as for `pairs`.
    k: K, the number of completions. A row of 2 to K completions is padded with
      masked ones. Any other number is a bad row.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows of a split that are left
      out and listed before reading fails.
    columns: COLUMNS, as for `pairs`.

  Returns:
    The name of the task.
  """
  return _add(
    f'preference_rewards_{k}',
    _Files(files, max_bad_rows, columns),
    functools.partial(preference_rows.scored, k=k),
    text_tasks.REWARDS,
    preprocessors=[text_tasks.exactly(k)],
    scores=['rewards'],
    targets_rank=2,
  )


@identity.reads(files=row_paths.identify)
def supervised(
  *,
  files: Mapping[str, File],
  max_bad_rows: int = 0,
  columns: Mapping[str, str | None] | None = None,
) -> str:
  """Registers a task of single completions.

  They are the chosen or best-scored ones, `completion`, or the last turn of
  `messages`.

  Args:
    files: The path of each split, as for `pairs`.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows of a split that are left
      out and listed before reading fails.
    columns: COLUMNS, as for `pairs`.

  Returns:
    The name of the task.
  """
  return _add(
    'preference_supervised',
    _Files(files, max_bad_rows, columns),
    preference_rows.best,
    text_tasks.SUMMARY,
    targets_rank=1,
  )


@dataclasses.dataclass(frozen=True)
class _Files:
  """The files of a task, and how they are read."""

  files: Mapping[str, File]
  max_bad_rows: int
  columns: Mapping[str, str | None] | None

  def __post_init__(self):
    for ours, theirs in (self.columns or {}).items():
      if ours not in _FIELDS:
        raise ValueError(
          f'COLUMNS names {ours!r}, which is not read: it names one of '
          f'{", ".join(_FIELDS)}, and then the field of your files.'
        )
      if not isinstance(theirs, str | None):
        raise ValueError(
          f'COLUMNS[{ours!r}] is {theirs!r}: it has to be the name of a field '
          'of your files, in quotes, or None.'
        )

  def parts(self) -> list[tuple[str, str, float]]:
    """Returns (split, absolute path, rate) of each file.

    Raises:
      ValueError: A rate is not positive, or something is no pair.
    """
    found = []
    for split, value in self.files.items():
      name = f'PREFERENCE_FILES[{split!r}] ({split.upper()}_FILE)'
      if isinstance(value, str | os.PathLike) or value is None:
        found.append((split, paths.absolute(value, name), 1.0))
        continue
      for pair in value:
        try:
          path, rate = pair
          rate = float(rate)
        except (TypeError, ValueError):
          rate = 0.0
        if not 0 < rate < math.inf:
          raise ValueError(
            f'{name} has {pair!r}, which is no pair of a path and a rate above '
            "0, such as ('train.jsonl', 2.0)."
          )
        found.append((split, paths.absolute(path, name), rate))
    return found

  def source(
    self,
    splits: Mapping[str, str],
    parse: Callable[[dict[str, Any]], dict[str, Any]],
    signature: Mapping[str, Any],
  ) -> text_tasks.Source:
    """Returns a source of one file a split."""
    parse = functools.partial(_parse, parse, dict(self.columns or {}))

    def rows(split: str) -> text_tasks.Rows:
      return text_tasks.rows_of_files(
        [splits[split]], parse, max_bad_rows=self.max_bad_rows
      )

    return text_tasks.Source(
      rows,
      files=lambda split: row_paths.files(splits[split]),
      signature=dict(signature) | text_tasks.CONVERSATION,
      splits=list(splits),
      max_bad_rows=self.max_bad_rows,
    )


def _add(
  kind: str,
  files: _Files,
  parse: Callable[[dict[str, Any]], dict[str, Any]],
  signature: Mapping[str, Any],
  **kwargs: Any,
) -> str:
  """Registers a task, or a mixture if a split has several files."""
  parts = files.parts()
  text = repr((sorted(parts), files.max_bad_rows, files.columns))
  name = f'{kind}_{hashlib.sha256(text.encode()).hexdigest()[:8]}'
  registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if name in registered:
    return name
  splits = [split for split, _, _ in parts]
  if len(set(splits)) == len(splits):
    by_split = {split: path for split, path, _ in parts}
    source = files.source(by_split, parse, signature)
    text_tasks.add_task(name, source, **kwargs)
    return name
  mixed = []
  for split, path, rate in parts:
    part = f'{name}_{split}_{splits[: len(mixed)].count(split)}'
    source = files.source({split: path}, parse, signature)
    text_tasks.add_task(part, source, **kwargs)
    mixed.append((part, rate))
  seqio.MixtureRegistry.add(name, mixed)
  return name


def _parse(
  parse: Callable[[dict[str, Any]], dict[str, Any]],
  columns: Mapping[str, str | None],
  row: dict[str, Any],
) -> dict[str, Any]:
  """Parses a row under the names that this module reads."""
  if not columns:
    return parse(row)
  renamed = {k: v for k, v in row.items() if k not in columns}
  for ours, theirs in columns.items():
    value: Any = row
    for part in (theirs or '').split('.'):
      value = value.get(part) if isinstance(value, dict) else None
    if value is not None:
      renamed[ours] = value
  try:
    return parse(renamed)
  except json_lines.BadRow as error:
    named = [
      f'{ours!r} is {theirs!r} of the file'
      for ours, theirs in columns.items()
      if re.search(rf"'{re.escape(ours)}['.]", str(error))
    ]
    if not named:
      raise
    raise json_lines.BadRow(f'{error} (COLUMNS: {", ".join(named)})') from None
