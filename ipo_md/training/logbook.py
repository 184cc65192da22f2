"""What a training run reports: metrics, progress, sizes and versions."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import importlib.metadata
import json
import math
import pathlib
import subprocess
from typing import Any

from etils import epath
import jax

from ipo_md.core import averages
from ipo_md.core import metrics as metrics_lib
from ipo_md.core import progress
from ipo_md.core import types
from ipo_md.training import config
from ipo_md.training import meter as meter_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]

# Metrics of samples that cannot teach anything: their value over a whole
# window, and what to do about it.
_DEGENERATE = (
  (
    'identical_pairs',
    1.0,
    'both completions of every prompt were identical, so a preference between '
    'them has no effect: raise TEMPERATURE, TOP_K or TOP_P.',
  ),
  (
    'eos_rate',
    0.0,
    'no completion ended with EOS, so all were cut: raise MAX_NEW_TOKENS, or '
    'check EOS_ID.',
  ),
)


class Logbook:
  """Writes the metrics of a run and shows its progress.

  The metrics of updates stay on the device until a window of them is closed, so
  the host runs ahead of the device in between.

  Args:
    writer: Writer of the metric files.
    meter: Clock of the run's phases.
    state: Training state, whose parameters are counted.
    first: Number of updates made before.
    schedule: When the run ends.
    watch: How many updates may be skipped.
  """

  def __init__(
    self,
    writer: metrics_lib.MetricWriter,
    meter: meter_lib.Meter,
    state: types.TrainState,
    *,
    first: int,
    schedule: config.Schedule,
    watch: config.Watch,
  ):
    self._writer, self._meter = writer, meter
    self._max_skipped = watch.max_skipped
    self._parameters = sum(x.size for x in jax.tree.leaves(state.params))
    self._line = progress.ProgressLine(schedule.train_steps, first)
    self._window = []
    self._means, self._tokens = {}, 0.0
    self._warned = set()

  def counts(self, counts: Mapping[str, int]) -> None:
    """Writes what was counted in the data, as metrics of step 0."""
    self._writer.scalars(0, {f'data_{k}': v for k, v in counts.items()})

  def add(self, metrics: Mapping[str, Any]) -> None:
    """Adds the metrics of one update to the window."""
    self._window.append(metrics)

  def close_window(self, done: int) -> None:
    """Writes the means over the updates since the last window.

    Raises:
      FloatingPointError: A metric is not finite, or too many were skipped.
    """
    with self._meter.phase('update'):  # the host ran ahead until here
      self._means, self._tokens = means(self._window, done, self._max_skipped)
    self._writer.scalars(done, self._means)

  def evaluation(
    self, done: int, evaluate: Callable[..., Any], *arguments: Any
  ) -> dict[str, float]:
    """Evaluates, writes what was measured, and returns it."""
    with self._meter.phase('evaluation'):
      measured, texts = evaluate(*arguments)
    self._writer.scalars(done, measured)
    self._writer.texts(done, texts)
    return measured

  def show(self, done: int, measured: Mapping[str, float]) -> None:
    """Shows the line of progress and starts the next window."""
    self._line.update(done, {**self._means, **measured}, tokens=self._tokens)
    found = self._meter.report(
      updates=len(self._window),
      tokens=self._tokens,
      parameters=self._parameters,
    )
    self._writer.performance(done, found)
    self._window.clear()
    self._warn(done)
    for program in self._meter.recompiled():
      progress.say(
        f'Compiled again up to step {done:,}, as shapes vary: {program}'
      )

  def _warn(self, done: int) -> None:
    """Says once, for each kind, that the samples cannot teach anything."""
    for metric, value, text in _DEGENERATE:
      if self._means.get(metric) == value and metric not in self._warned:
        self._warned.add(metric)
        progress.say(f'Up to step {done:,} {text}')

  def close(self) -> None:
    """Ends the line of progress."""
    self._line.close()


def means(
  window: Sequence[Mapping[str, Any]], done: int, max_skipped: int
) -> tuple[dict[str, float], float]:
  """Reduces metrics over the updates that were not skipped.

  Args:
    window: Metrics of consecutive updates.
    done: Number of the last of them.
    max_skipped: MAX_SKIPPED, how many updates in a row may be skipped.

  Returns:
    The metrics, each weighted as `averages` says, and the number of tokens.

  Raises:
    FloatingPointError: A metric is not finite, or too many were skipped.
  """
  made, skipped = [], 0
  window = [dict(metrics) for metrics in jax.device_get(list(window))]
  for step, metrics in enumerate(window, done - len(window) + 1):
    in_a_row = metrics.pop('skipped_in_a_row', 0)
    skipped += in_a_row > 0
    numbers = {k: float(v) for k, v in metrics.items()}
    bad = {k: v for k, v in numbers.items() if not math.isfinite(v)}
    if in_a_row > max_skipped or bad and not in_a_row:
      values = ', '.join(f'{k} is {v}' for k, v in (bad or numbers).items())
      raise FloatingPointError(
        f'{values} at step {step}'
        + (f', the gradient of {in_a_row} updates in a row' if in_a_row else '')
        + '. Any checkpoint in MODEL_DIR is from before it. A lower '
        'LEARNING_RATE is the usual remedy, MAX_SKIPPED skips such updates.'
      )
    if not in_a_row:
      made.append(metrics)
  found = averages.pooled(made) if made else {}
  tokens = found.pop('tokens', 0.0)
  if skipped:
    found['skipped'] = skipped
  return found, tokens


def describe(model_dir, state, frozen, mesh, examples) -> None:
  """Prints the sizes of a run, and saves versions beside the checkpoints."""
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  parts = [f'policy {size(state.params):,} parameters']
  for name in ('reference', 'judge'):
    params = getattr(frozen, name)
    parts.append(f'no {name}' if params is None else f'{name} {size(params):,}')
  shape = ' x '.join(f'{k} {v}' for k, v in mesh.shape.items())
  counts = progress.counted(examples.counts)
  progress.say(f'{", ".join(parts)}; mesh {shape}; {counts}')
  if jax.process_index() == 0:
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'seqio')
    versions: dict[str, str | None] = {
      p: importlib.metadata.version(p) for p in (*packages, 'numpy')
    }
    versions['commit'] = _commit()
    path = epath.Path(model_dir) / 'versions.json'
    path.write_text(json.dumps(versions, indent=1) + '\n')


def _commit(root: pathlib.Path = _ROOT) -> str | None:
  """Returns the commit that runs, or None if it is unknown.

  Args:
    root: Folder of the code: a checkout, or the files of a commit with the file
      COMMIT beside them, as launch/ ships them.
  """
  if (root / 'COMMIT').exists():
    return (root / 'COMMIT').read_text().strip()
  if not (root / '.git').exists():
    return None  # Any checkout around an installed package is another project.
  try:
    return subprocess.run(
      ['git', '-C', str(root), 'rev-parse', 'HEAD'],
      capture_output=True,
      check=True,
      text=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None
