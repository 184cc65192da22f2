"""What a run says while it runs: metric files and progress lines.

Only process 0 writes and prints; on the others everything here does nothing.
"""

from collections.abc import Mapping
import json
import os
from typing import Any

from etils import epath
import jax

from ipo_md.core import trackers

METRICS_FILE = 'metrics.jsonl'
PERFORMANCE_FILE = 'performance.jsonl'


class MetricWriter:
  """Writes MODEL_DIR/metrics.jsonl and, for TensorBoard, MODEL_DIR/tensorboard.

  A line of metrics.jsonl is {"step": ..., name: value, ...}, written whole. A
  resumed run appends: where it repeats a step, `read_metrics` takes the later
  line. A thread writes TensorBoard's files. Values that differ between two
  otherwise equal runs, such as times, go to performance.jsonl in the same form.

    with metrics.MetricWriter(model_dir) as writer:
      writer.scalars(step, {'loss': loss})

  Args:
    model_dir: MODEL_DIR, a local path or one in a bucket.
    tracker: TRACKER, to which the same goes as to TensorBoard; or None.
  """

  def __init__(self, model_dir: str, tracker: trackers.Tracker | None = None):
    self._directory = epath.Path(model_dir)
    self._tensorboard = None
    if jax.process_index():
      return
    # TensorFlow takes seconds to import, and readers of metrics need none.
    from clu import metric_writers

    for name in (METRICS_FILE, PERFORMANCE_FILE):
      path = self._directory / name
      try:
        self._directory.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        with path.open('a'):
          pass
      except OSError as error:
        raise ValueError(_cannot_write(path, error)) from error
    self._tensorboard = metric_writers.AsyncMultiWriter(
      [metric_writers.SummaryWriter(str(self._directory / 'tensorboard'))]
    )
    self._tracker = trackers.InBackground(tracker)

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    if self._tensorboard is not None:
      self._tensorboard.close()
      self._tracker.close(failed=kind is not None)

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes the scalars of one step; a value may be an array of shape []."""
    self._write(METRICS_FILE, step, values)

  def performance(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes what `training.meter` has measured up to a step."""
    self._write(PERFORMANCE_FILE, step, values, 'performance/')

  def _write(
    self, name: str, step: int, values: Mapping[str, Any], prefix: str = ''
  ) -> None:
    if self._tensorboard is None:
      return
    values = {name: float(values[name]) for name in sorted(values)}
    line = json.dumps({'step': int(step), **values}) + '\n'
    path = self._directory / name
    try:
      with path.open('a') as file:
        file.write(line)
    except OSError as error:
      raise ValueError(_cannot_write(path, error)) from error
    shown = {prefix + name: value for name, value in values.items()}
    self._tensorboard.write_scalars(int(step), shown)
    self._tracker.scalars(int(step), shown)

  def texts(self, step: int, values: Mapping[str, str]) -> None:
    """Shows texts, such as samples, in TensorBoard and the tracker."""
    if self._tensorboard is not None:
      self._tensorboard.write_texts(int(step), values)
      self._tracker.texts(int(step), values)


def _cannot_write(path: epath.Path, error: OSError) -> str:
  return f'Cannot write {path}: {error.strerror} (MODEL_DIR).'


def _cut_torn_line(path: epath.Path) -> None:
  """Cuts off the half line that a killed run left; buckets have none."""
  if not path.exists():
    return
  content = path.read_bytes()
  if content and not content.endswith(b'\n'):
    os.truncate(path, content.rfind(b'\n') + 1)


def read_metrics(path: str) -> dict[int, dict[str, float]]:
  """Reads metrics.jsonl, also while a run writes it or after it was killed.

  Args:
    path: Path of the file, or of the MODEL_DIR that holds it.

  Returns:
    The values of each step, in order of the steps. A step may have several
    lines, one from training and one from evaluation; the last value of a name
    counts.

  Raises:
    ValueError: A line is not JSON, other than a last one that is cut short.
  """
  file = epath.Path(path)
  if file.is_dir():
    file /= METRICS_FILE
  *lines, _ = file.read_text().split('\n')
  metrics = {}
  for number, line in enumerate(lines, 1):
    try:
      values = json.loads(line)
      step = values.pop('step')
    except (ValueError, KeyError, AttributeError) as error:
      raise ValueError(
        f'{file}, line {number}: not the metrics of a step: {line[:80]!r}.'
      ) from error
    metrics.setdefault(step, {}).update(values)
  return dict(sorted(metrics.items()))
