"""XSum: news articles, the prompts of IPO-MD's online runs.

  xsum_prompts  inputs, targets: an article in TL;DR's layout and its summary;
                an online run reads only the inputs

The policy was fine-tuned on TL;DR, so the prompt is 'POST: {document}' with
TL;DR's closing (PromptFormat.closing). There are two sources:

- XSUM_DIR names a directory of train.jsonl, validation.jsonl and test.jsonl,
  rows of document, summary and id. MAX_BAD_ROWS in the environment is the
  number of rows of a file that may be left out.
- If XSUM_DIR is not set, TFDS's own `xsum` is read. Its files have to be
  downloaded by hand.

Narayan et al., arXiv 1808.08745.
"""

from collections.abc import Mapping
import os
from typing import Any

import tensorflow_datasets as tfds

from ipo_md.core import paths
from tasks.builders import base
from tasks.lib import json_lines
from tasks.lib import metrics
from tasks.lib import text_tasks

_SPLITS = ('train', 'validation', 'test')


def _prompt(row: Mapping[str, Any]) -> dict[str, Any]:
  document = json_lines.field(row, 'document', str)
  if not document.strip():
    raise json_lines.BadRow("field 'document' is empty")
  return {
    'inputs': f'POST: {document}',
    'targets': json_lines.field(row, 'summary', str),
  }


def _files(split: str) -> list[str]:
  if 'XSUM_DIR' in os.environ:
    folder = paths.absolute(os.environ['XSUM_DIR'], 'XSUM_DIR')
    return [os.path.join(folder, f'{split}.jsonl')]
  builder = tfds.builder('xsum')
  if split not in builder.info.splits:
    raise ValueError(
      f'XSUM_DIR is not set, and XSum is not in {builder.info.data_dir}: '
      f'set XSUM_DIR to a directory of {split}.jsonl, rows of document, '
      'summary, id.'
    )
  return [str(path) for path in builder.info.splits[split].filepaths]


def _rows(split: str) -> text_tasks.Rows:
  files = _files(split)
  if 'XSUM_DIR' in os.environ:
    allowed = json_lines.max_bad_rows()
    yield from text_tasks.rows_of_files(files, _prompt, max_bad_rows=allowed)
    return
  rows = tfds.builder('xsum').as_dataset(split=split, shuffle_files=False)
  for row in tfds.as_numpy(rows):
    yield _prompt(base.text(row))


text_tasks.add_task(
  'xsum_prompts',
  text_tasks.Source(
    _rows, files=_files, signature=text_tasks.SUMMARY, splits=_SPLITS
  ),
  targets_rank=1,
  metric_fns=[metrics.rouge],
)
