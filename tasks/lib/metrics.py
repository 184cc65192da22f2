"""seqio metrics, as means over examples in percent."""

from collections.abc import Mapping
from collections.abc import Sequence
import functools

import numpy as np
from rouge_score import rouge_scorer

_ROUGE = ('rouge1', 'rouge2', 'rougeLsum')


def rouge(
  targets: Sequence[str], predictions: Sequence[str]
) -> Mapping[str, float]:
  """Returns the F1 of unigrams, bigrams and longest common subsequences.

  The scores are those of Google's rouge_score without stemming, as in T5's
  metrics. T5 reports the median of a bootstrap, this function the mean.
  Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.

  Args:
    targets: [N] reference texts.
    predictions: [N] predicted texts.
  """
  found = [
    _scorer().score(*pair) for pair in zip(targets, predictions, strict=True)
  ]
  return {
    name: 100 * float(np.mean([row[name].fmeasure for row in found]))
    for name in _ROUGE
  }


@functools.cache
def _scorer() -> rouge_scorer.RougeScorer:
  return rouge_scorer.RougeScorer(_ROUGE)


def exact_match(
  targets: Sequence[str | None], predictions: Sequence[str | None]
) -> Mapping[str, float]:
  """Returns how often a prediction equals its target.

  Args:
    targets: [N] correct answers.
    predictions: [N] predicted answers. None is no answer and never correct.
  """
  same = [
    t is not None and t == p for t, p in zip(targets, predictions, strict=True)
  ]
  return {'exact_match': 100 * float(np.mean(same))}
