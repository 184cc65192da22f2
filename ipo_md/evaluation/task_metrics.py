"""Applies the seqio metrics of a task to completions of its prompts."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
import seqio

from ipo_md import data
from ipo_md import judges


def of_task(
  dataset: data.Dataset, count: int, *, mixture_or_task_name: str
) -> judges.Measure | None:
  """Makes a measure of completions from the metrics of a task.

  Each metric is called with one target and one prediction, so it should be a
  mean over examples, as ROUGE and exact match are.

  Args:
    dataset: Data set of the task.
    count: Number of prompts, counted from the first.
    mixture_or_task_name: PROMPT_TASK.

  Returns:
    A measure of one completion of each of these prompts, in their order; or
    None for a mixture, and for a task without metrics or without targets.
  """
  task = data.find(mixture_or_task_name)
  if isinstance(task, seqio.Mixture) or not task.predict_metric_fns:
    return None
  if dataset.examples[0].k != 1:
    return None
  targets = [
    dataset.vocabulary.decode(_without_eos(dataset, i, row))
    for i, row in data.first_rows(dataset, count)
  ]

  def of(target: str, completion: str) -> dict[str, float]:
    target = task.postprocess_fn(target, example=None, is_target=True)
    said = task.postprocess_fn(completion, example=None, is_target=False)
    found: list[Mapping[str, Any]] = [
      metric([target], [said]) for metric in task.predict_metric_fns
    ]
    return {name: float(v) for values in found for name, v in values.items()}

  def measure(prompts, completions):
    del prompts
    return [of(*pair) for pair in zip(targets, completions, strict=True)]

  return measure


@judges.declare(runs_on='host')
@dataclasses.dataclass(frozen=True)
class MetricJudge:
  """A judge that prefers the completion with the higher metric.

  Attributes:
    dataset: Function that loads the held-out prompts.
    mixture_or_task_name: PROMPT_TASK.
    metric: Name of a value that the task's metrics return, such as
      'exact_match'.
  """

  dataset: Callable[[], data.Dataset]
  mixture_or_task_name: str
  metric: str

  def __call__(
    self, samples: judges.Samples, pairs: judges.Pairs
  ) -> Iterator[np.ndarray]:
    """Yields [N, 2] P(y_i > y_k | x) of each pair, alike in both orders.

    Raises:
      ValueError: The prompts are not the first ones of the data set, or the
        task has no such metric.
    """
    dataset, count = self.dataset(), len(samples.prompts)
    prompts = dataset.prompts(data.first_rows(dataset, count))
    if judges.decode_prompts(prompts, dataset) != list(samples.prompts):
      raise ValueError(
        f'MetricJudge knows the targets of the first {count} prompts of '
        f'{self.mixture_or_task_name} alone, but is asked about others.'
      )
    measure = of_task(
      dataset, count, mixture_or_task_name=self.mixture_or_task_name
    )
    columns = [
      measure(samples.prompts, column) if measure else [{}]
      for column in zip(*samples.texts, strict=True)
    ]
    if self.metric not in columns[0][0]:
      raise ValueError(
        f'MetricJudge.metric is {self.metric!r}, but the metrics of task '
        f'{self.mixture_or_task_name} are {sorted(columns[0][0])}.'
      )
    scores = np.array([[row[self.metric] for row in c] for c in columns])
    for i, k in pairs:
      p = (1 + np.sign(scores[i] - scores[k])) / 2
      yield np.stack([p, p], axis=-1)


def _without_eos(dataset: data.Dataset, task: int, row: int) -> list[int]:
  """Returns the target of a row without EOS."""
  ids = dataset.examples[task].completions.row(row)
  return ids[ids != dataset.vocabulary.eos_id].tolist()
