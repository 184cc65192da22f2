"""TL;DR: Reddit posts, their summaries and comparisons of summaries.

  tldr_sft         inputs, targets: posts and summaries of the fine-tuning set
  tldr_prompts     the same; an online run reads only the inputs
  tldr_preference  inputs, targets [2, T], preference 0 or 1: comparisons
  tldr_reward      the same, to train a reward model
  tldr_pairs       the same, for offline runs

A comparator reads each pair in both orders, so a pair is one example. `inputs`
end with the post. The 'TL;DR:' after it is PromptFormat.closing, so that only
the post of a long prompt is truncated. `tasks.builders.tldr` builds the data
sets.

Stiennon et al., arXiv 2009.01325.
"""

from collections.abc import Mapping
from typing import Any

from tasks.builders import base
from tasks.builders import tldr as tldr_builder
from tasks.lib import metrics
from tasks.lib import text_tasks


def prompt(row: Mapping[str, Any]) -> str:
  """Returns the prompt of a post in the layout of the paper, to its end."""
  return (
    f'SUBREDDIT: r/{row["subreddit"]}\nTITLE: {row["title"]}\n'
    f'POST: {row["post"]}'
  )


def _summary(row: Mapping[str, Any]) -> dict[str, Any]:
  row = base.text(row)
  return {'inputs': prompt(row), 'targets': row['summary'].strip()}


def _comparison(row: Mapping[str, Any]) -> dict[str, Any]:
  row = base.text(row)
  return {
    'inputs': prompt(row),
    'completions': [s.strip() for s in row['summaries']],
    'preference': float(row['choice'] == 0),
  }


for _name in ('tldr_sft', 'tldr_prompts'):
  text_tasks.add_task(
    _name,
    text_tasks.tfds_source(
      tldr_builder.TldrSummaries.name, _summary, signature=text_tasks.SUMMARY
    ),
    targets_rank=1,
    metric_fns=[metrics.rouge],
  )

for _name in ('tldr_preference', 'tldr_reward', 'tldr_pairs'):
  text_tasks.add_task(
    _name,
    text_tasks.tfds_source(
      tldr_builder.TldrComparisons.name,
      _comparison,
      signature=text_tasks.PREFERENCE,
    ),
    scores=['preference'],
    targets_rank=2,
  )
