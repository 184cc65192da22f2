"""UltraFeedback: instructions with up to 4 scored completions.

  ultrafeedback_prompts  inputs
  ultrafeedback_rewards  inputs, targets [4, T], rewards [4]
  ultrafeedback_pairs    inputs, targets [2, T], preference 1: the best
                         completion and a random other one (a tie is 0.5)
  ultrafeedback_sft      inputs, targets: the best completion

Rewards are the fine-grained scores, 1 to 5. Rows of 2 or 3 completions are
padded with masked ones. Rows of fewer than 2 are left out of rewards and pairs,
and rows without completions are left out of sft. The splits are train and
validation. `tasks.builders.ultrafeedback` builds the data set.

Cui et al., arXiv 2310.01377.
"""

from collections.abc import Mapping
from typing import Any
import zlib

import numpy as np

from tasks.builders import base
from tasks.builders import ultrafeedback as ultrafeedback_builder
from tasks.lib import text_tasks

_SPLITS = ('train', 'validation')


def _prompt(row: Mapping[str, Any]) -> dict[str, Any]:
  return {'inputs': base.text(row['instruction'])}


def _rewards(row: Mapping[str, Any]) -> dict[str, Any] | None:
  if len(row['responses']) < 2:
    return None
  return _prompt(row) | {
    'completions': base.text(row['responses']),
    'rewards': row['fine_grained_scores'],
  }


def _pair(row: Mapping[str, Any]) -> dict[str, Any] | None:
  """Pairs the best completion with one drawn by a hash of the instruction."""
  scores = row['fine_grained_scores']
  if len(scores) < 2:
    return None
  best = int(np.argmax(scores))
  others = [i for i in range(len(scores)) if i != best]
  draw = np.random.default_rng(zlib.crc32(row['instruction']))
  other = others[draw.integers(len(others))]
  responses = base.text(row['responses'])
  return _prompt(row) | {
    'completions': [responses[best], responses[other]],
    'preference': 0.5 if scores[other] == scores[best] else 1.0,
  }


def _best(row: Mapping[str, Any]) -> dict[str, Any] | None:
  if not len(row['responses']):
    return None
  best = int(np.argmax(row['fine_grained_scores']))
  return _prompt(row) | {'targets': base.text(row['responses'])[best]}


def _source(parse, signature):
  return text_tasks.tfds_source(
    ultrafeedback_builder.Ultrafeedback.name,
    parse,
    signature=signature,
    splits=_SPLITS,
  )


text_tasks.add_task(
  'ultrafeedback_prompts', _source(_prompt, text_tasks.PROMPT)
)
text_tasks.add_task(
  'ultrafeedback_rewards',
  _source(_rewards, text_tasks.REWARDS),
  preprocessors=[text_tasks.exactly(4)],
  scores=['rewards'],
  targets_rank=2,
)
text_tasks.add_task(
  'ultrafeedback_pairs',
  _source(_pair, text_tasks.PREFERENCE),
  scores=['preference'],
  targets_rank=2,
)
text_tasks.add_task(
  'ultrafeedback_sft', _source(_best, text_tasks.SUMMARY), targets_rank=1
)
