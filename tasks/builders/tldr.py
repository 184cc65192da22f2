"""TFDS builders of the TL;DR data sets, from OpenAI's original files.

  tldr_summaries    posts and their summaries, for fine-tuning
  tldr_comparisons  pairs of summaries and the one that a person preferred

The files are downloaded, or read from TFDS's manual directory under the names
that they have at their source:

  tldr_summaries    train.jsonl valid.jsonl test.jsonl
  tldr_comparisons  batch3.json to batch20.json, batch22.json,
                    edit_b2_eval_test.json

https://github.com/openai/summarize-from-feedback, arXiv 2009.01325.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tasks.builders import base
from tasks.lib import json_lines

_URL = 'https://openaipublic.blob.core.windows.net/summarize-from-feedback'
_BATCHES = (*range(3, 21), 22)
_CITATION = """@inproceedings{stiennon2020learning,
  title={Learning to summarize with human feedback},
  author={Stiennon, Nisan and Ouyang, Long and Wu, Jeff and Ziegler, Daniel M.
    and Lowe, Ryan and Voss, Chelsea and Radford, Alec and Amodei, Dario and
    Christiano, Paul},
  booktitle={NeurIPS},
  year={2020}
}"""
_POST = {
  'id': tfds.features.Text(),
  'subreddit': tfds.features.Text(),
  'title': tfds.features.Text(),
  'post': tfds.features.Text(),
}


class TldrSummaries(base.Builder):
  """The filtered TL;DR set: 116,722 train, 6,447 validation, 6,553 test."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        _POST | {'summary': tfds.features.Text()}
      ),
      homepage='https://github.com/openai/summarize-from-feedback',
      citation=_CITATION,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    names = {'train': 'train', 'validation': 'valid', 'test': 'test'}
    folder = f'{_URL}/datasets/tldr_3_filtered'
    paths = self.find(
      dl_manager,
      {s: f'{folder}/{name}.jsonl' for s, name in names.items()},
    )
    return {s: self._generate_examples([path]) for s, path in paths.items()}

  def _generate_examples(self, paths) -> Iterator[tuple[str, dict[str, Any]]]:
    names = ('id', 'subreddit', 'title', 'post', 'summary')

    def parse(row):
      return {name: json_lines.field(row, name, str) for name in names}

    return self.read(paths, parse)


class TldrComparisons(base.Builder):
  """Comparisons of two summaries of a post.

  The field `split` of a row decides its split: train, valid1 (validation) or
  valid2 (test). Comparisons on CNN/DM articles, which have no `post`, are left
  out.
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        _POST
        | {
          'summaries': tfds.features.Sequence(tfds.features.Text()),
          'policies': tfds.features.Sequence(tfds.features.Text()),
          'choice': np.int64,
          'worker': tfds.features.Text(),
          'batch': tfds.features.Text(),
          'confidence': np.int64,  # 1 to 9, or -1 if unknown
        }
      ),
      homepage='https://github.com/openai/summarize-from-feedback',
      citation=_CITATION,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    names = [*(f'batch{i}' for i in _BATCHES), 'edit_b2_eval_test']
    urls = {n: f'{_URL}/dataset/comparisons/{n}.json' for n in names}
    paths = list(self.find(dl_manager, urls).values())
    splits = {'train': 'train', 'validation': 'valid1', 'test': 'valid2'}
    return {
      ours: self._generate_examples(paths, theirs)
      for ours, theirs in splits.items()
    }

  def _generate_examples(
    self, paths, split: str
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    return self.read(paths, lambda row: _parse_comparison(row, split))


def _parse_comparison(
  row: Mapping[str, Any], split: str
) -> dict[str, Any] | None:
  field = json_lines.field
  found = field(row, 'split', str)
  if found not in ('train', 'valid1', 'valid2'):
    raise json_lines.BadRow(f"field 'split' is {found!r}")
  if 'article' in field(row, 'info', dict) or found != split:
    return None
  if len(field(row, 'summaries', list)) != 2:
    raise json_lines.BadRow(f"field 'summaries' has {len(row['summaries'])}")
  choice = field(row, 'choice', int)
  if choice not in (0, 1):
    raise json_lines.BadRow(f"field 'choice' is {choice}, not 0 or 1")
  extra = field(row, 'extra', dict) if row.get('extra') else {}
  confidence = -1
  if extra.get('confidence') is not None:
    confidence = int(json_lines.number(row, 'extra.confidence'))
    if abs(confidence) > 100:
      raise json_lines.BadRow(
        f"field 'extra.confidence' is {confidence}, not 1 to 9"
      )
  return {
    'id': field(row, 'info.id', str),
    'subreddit': field(row, 'info.subreddit', str),
    'title': field(row, 'info.title', str),
    'post': field(row, 'info.post', str),
    'summaries': [field(row, f'summaries.{i}.text', str) for i in range(2)],
    'policies': [field(row, f'summaries.{i}.policy', str) for i in range(2)],
    'choice': choice,
    'worker': field(row, 'worker', str),
    'batch': field(row, 'batch', str),
    'confidence': confidence,
  }
