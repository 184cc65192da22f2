"""Tasks on preference files: JSON lines with one prompt per row.

  pairs       prompt, chosen, rejected         -> targets [2, T], preference 1
  rewards     prompt, completions[], scores[]  -> targets [K, T], rewards [K]
  supervised  either                           -> targets [T], the best one

A completion may be a list of messages: one of the assistant, alone or after one
of the user that repeats `prompt` (as in ultrafeedback_binarized). A row with
more turns, or with a system prompt, is a bad row. A gin file binds one of the
three as the task:

  PREFERENCE_TASK = @preference_files.pairs()
  preference_files.pairs.files = {'train': 'a.jsonl', 'validation': 'b.jsonl'}
"""

from collections.abc import Callable
from collections.abc import Mapping
import hashlib
from typing import Any

import seqio

from ipo_md.core import identity
from ipo_md.core import paths
from tasks.lib import json_lines
from tasks.lib import text_tasks


@identity.reads(files=identity.of_file)
def pairs(*, files: Mapping[str, str], max_bad_rows: int = 0) -> str:
  """Registers a task of pairs, rows of `prompt, chosen, rejected`.

  Args:
    files: The path of each split.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows of a split that are left
      out and listed before reading fails.

  Returns:
    The name of the task.
  """
  return _add(
    f'preference_pairs_{_digest(files, max_bad_rows)}',
    _source(files, _pair, text_tasks.PREFERENCE, max_bad_rows),
    scores=['preference'],
    targets_rank=2,
  )


@identity.reads(files=identity.of_file)
def rewards(*, files: Mapping[str, str], k: int, max_bad_rows: int = 0) -> str:
  """Registers a task of rewards, rows of `prompt, completions, scores`.

  Args:
    files: The path of each split.
    k: K, the number of completions. A row of 2 to K completions is padded with
      masked ones. Any other number is a bad row.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows of a split that are left
      out and listed before reading fails.

  Returns:
    The name of the task.
  """
  return _add(
    f'preference_rewards_{_digest(files, k, max_bad_rows)}',
    _source(
      files, lambda row: _scored(row, k), text_tasks.REWARDS, max_bad_rows
    ),
    preprocessors=[text_tasks.exactly(k)],
    scores=['rewards'],
    targets_rank=2,
  )


@identity.reads(files=identity.of_file)
def supervised(*, files: Mapping[str, str], max_bad_rows: int = 0) -> str:
  """Registers a task of the chosen or best-scored completions.

  Args:
    files: The path of each split, in either format.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows of a split that are left
      out and listed before reading fails.

  Returns:
    The name of the task.
  """
  name = f'preference_supervised_{_digest(files, max_bad_rows)}'
  source = _source(files, _best, text_tasks.SUMMARY, max_bad_rows)
  return _add(name, source, targets_rank=1)


def _source(
  files: Mapping[str, str],
  parse: Callable[[dict[str, Any]], dict[str, Any]],
  signature: Mapping[str, Any],
  max_bad_rows: int,
) -> text_tasks.Source:
  files = {
    split: paths.absolute(
      path, f'PREFERENCE_FILES[{split!r}] ({split.upper()}_FILE)'
    )
    for split, path in files.items()
  }

  def rows(split: str) -> text_tasks.Rows:
    return text_tasks.rows_of_files(
      [files[split]], parse, max_bad_rows=max_bad_rows
    )

  return text_tasks.Source(
    rows,
    files=lambda split: [files[split]],
    signature=signature,
    splits=list(files),
  )


def _add(name: str, source: text_tasks.Source, **kwargs: Any) -> str:
  if name not in seqio.TaskRegistry.names():
    text_tasks.add_task(name, source, **kwargs)
  return name


def _digest(files: Mapping[str, str], *settings: int) -> str:
  text = repr((sorted(files.items()), settings))
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _pair(row: dict[str, Any]) -> dict[str, Any]:
  return {
    'inputs': _prompt(row),
    'completions': [_text(row, 'chosen'), _text(row, 'rejected')],
    'preference': 1.0,
  }


def _best(row: dict[str, Any]) -> dict[str, Any]:
  if 'chosen' in row:
    return {'inputs': _prompt(row), 'targets': _text(row, 'chosen')}
  scored = _scored(row)
  best = scored['rewards'].index(max(scored['rewards']))
  return {'inputs': scored['inputs'], 'targets': scored['completions'][best]}


def _scored(row: dict[str, Any], k: int | None = None) -> dict[str, Any]:
  completions = json_lines.field(row, 'completions', list)
  scores = json_lines.field(row, 'scores', list)
  if not completions:
    raise json_lines.BadRow("field 'completions' is empty")
  if k is not None and len(completions) < 2:
    raise json_lines.BadRow(
      "field 'completions' has 1, whose score has no other to compare with"
    )
  if k is not None and len(completions) > k:
    raise json_lines.BadRow(
      f"field 'completions' has {len(completions)}, more than k = {k}"
    )
  if len(scores) != len(completions):
    raise json_lines.BadRow(
      f"field 'scores' has {len(scores)} for {len(completions)} completions"
    )
  rows = range(len(completions))
  return {
    'inputs': _prompt(row),
    'completions': [_text(row, f'completions.{i}') for i in rows],
    'rewards': [json_lines.number(row, f'scores.{i}') for i in rows],
  }


def _prompt(row: dict[str, Any]) -> str:
  for name in ('system', 'history'):  # of a conversation of several turns
    if row.get(name):
      raise json_lines.BadRow(
        f'field {name!r} is not read. Only a single turn of the user is '
        'supported: put its text into `prompt`, or remove the field'
      )
  if isinstance(row.get('prompt'), list):
    raise json_lines.BadRow(
      "field 'prompt' is a list of messages. Only a single turn of the user is "
      'supported: write its content as the prompt'
    )
  prompt = json_lines.field(row, 'prompt', str)
  if not prompt.strip():
    raise json_lines.BadRow("field 'prompt' is empty")
  return prompt


def _text(row: dict[str, Any], path: str) -> str:
  """Returns a completion, a text or the message of the assistant."""
  value = json_lines.field(row, path, (str, list))
  if isinstance(value, str):
    return value
  roles = [
    json_lines.field(row, f'{path}.{i}.role', str) for i in range(len(value))
  ]
  if roles not in (['assistant'], ['user', 'assistant']):
    raise json_lines.BadRow(
      f'field {path!r} has the turns {", ".join(roles) or "none"}. Only user, '
      'assistant or assistant alone are supported'
    )
  texts = []
  for i, message in enumerate(value):
    texts.append(json_lines.field(row, f'{path}.{i}.content', str))
    for name in ('tool_calls', 'function_call'):
      if message.get(name):
        raise json_lines.BadRow(f"field '{path}.{i}.{name}' is not supported")
  if len(texts) == 2 and texts[0].strip() != _prompt(row).strip():
    raise json_lines.BadRow(
      f"field '{path}.0.content' is another text than `prompt`"
    )
  return texts[-1]
