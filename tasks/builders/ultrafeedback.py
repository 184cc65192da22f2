"""TFDS builder of UltraFeedback, from its original files.

The files are downloaded, or read from TFDS's manual directory:
evol_instruct.jsonl false_qa.jsonl flan.jsonl sharegpt.jsonl truthful_qa.jsonl
ultrachat.jsonl.

https://huggingface.co/datasets/openbmb/UltraFeedback, arXiv 2310.01377.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
import zlib

import numpy as np
import tensorflow_datasets as tfds

from tasks.builders import base
from tasks.lib import json_lines

_URL = 'https://huggingface.co/datasets/openbmb/UltraFeedback/resolve/main'
_FILES = (
  'evol_instruct',
  'false_qa',
  'flan',
  'sharegpt',
  'truthful_qa',
  'ultrachat',
)
_ASPECTS = (
  'instruction_following',
  'honesty',
  'truthfulness',
  'helpfulness',
)
_HELD_OUT = 32  # one instruction in 32 is for validation


class Ultrafeedback(base.Builder):
  """Instructions with up to 4 completions that GPT-4 scored.

  The original has one split. One instruction in 32, chosen by its CRC-32, is
  held out for validation, so that a repeated instruction is in one split only.
  `overall_score` is wrong for 2,628 rows. Use `fine_grained_score`.
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'source': tfds.features.Text(),
          'instruction': tfds.features.Text(),
          'models': tfds.features.Sequence(tfds.features.Text()),
          'responses': tfds.features.Sequence(tfds.features.Text()),
          'fine_grained_scores': tfds.features.Sequence(np.float32),
          'overall_scores': tfds.features.Sequence(np.float32),
          # NaN if the original has N/A
          'ratings': tfds.features.Sequence(
            dict.fromkeys(_ASPECTS, np.float32)
          ),
        }
      ),
      homepage='https://huggingface.co/datasets/openbmb/UltraFeedback',
      citation="""@inproceedings{cui2024ultrafeedback,
  title={UltraFeedback: Boosting Language Models with Scaled AI Feedback},
  author={Cui, Ganqu and Yuan, Lifan and Ding, Ning and Yao, Guanming and
    He, Bingxiang and Zhu, Wei and Ni, Yuan and Xie, Guotong and Xie, Ruobing
    and Lin, Yankai and Liu, Zhiyuan and Sun, Maosong},
  booktitle={ICML},
  year={2024}
}""",
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    urls = {name: f'{_URL}/{name}.jsonl' for name in _FILES}
    paths = list(self.find(dl_manager, urls).values())
    return {
      'train': self._generate_examples(paths, held_out=False),
      'validation': self._generate_examples(paths, held_out=True),
    }

  def _generate_examples(
    self, paths, held_out: bool
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    def parse(row):
      instruction = json_lines.field(row, 'instruction', str)
      chosen = zlib.crc32(instruction.encode()) % _HELD_OUT == 0
      return _parse(row) if chosen == held_out else None

    return self.read(paths, parse)


def _parse(row: Mapping[str, Any]) -> dict[str, Any]:
  field, number = json_lines.field, json_lines.number
  if not field(row, 'instruction', str).strip():
    raise json_lines.BadRow("field 'instruction' is empty")
  completions = field(row, 'completions', list)
  if len(completions) > 4:
    raise json_lines.BadRow(f"field 'completions' has {len(completions)}")
  at = [f'completions.{i}' for i in range(len(completions))]
  return {
    'source': field(row, 'source', str),
    'instruction': field(row, 'instruction', str),
    'models': [field(row, f'{c}.model', str) for c in at],
    'responses': [field(row, f'{c}.response', str) for c in at],
    'fine_grained_scores': [number(row, f'{c}.fine-grained_score') for c in at],
    'overall_scores': [number(row, f'{c}.overall_score') for c in at],
    'ratings': [
      {a: _rating(row, f'{c}.annotations.{a}.Rating') for a in _ASPECTS}
      for c in at
    ],
  }


def _rating(row: Mapping[str, Any], path: str) -> float:
  if json_lines.field(row, path, (str, int, float)) == 'N/A':
    return float('nan')
  return json_lines.number(row, path)
