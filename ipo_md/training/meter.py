"""Where the time of a run goes, what its devices do, and whether it is alive.

MODEL_DIR/performance.jsonl   a line for each line of progress
MODEL_DIR/profile/N           profiles for xprof, of the updates from N on
"""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import threading
import time
from typing import Any
from typing import TypeVar

import jax

from ipo_md.core import tpu_slices

# FLOP/s in bfloat16, by what JAX calls a device.
PEAK_FLOPS = {
  'TPU v4': tpu_slices.CHIPS['v4'].flops,
  'TPU v5 lite': tpu_slices.CHIPS['v5e'].flops,
  'TPU v5': tpu_slices.CHIPS['v5p'].flops,
  'TPU v5p': tpu_slices.CHIPS['v5p'].flops,
  'TPU v6 lite': tpu_slices.CHIPS['v6e'].flops,
  'TPU7x': tpu_slices.CHIPS['tpu7x'].device.flops,
} | {name: gpu.flops for name, gpu in tpu_slices.GPUS.items()}
_COMPILE_EVENTS = (
  '/jax/core/compile/jaxpr_trace_duration',
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)

_Item = TypeVar('_Item')


class Meter:
  """Divides the time of a run into phases, on the host's clock.

    with training.Meter() as meter:
      for batch in meter.waiting('data', batches):
        with meter.phase('update'):
          ...
      meter.report(updates=50, tokens=10_000, parameters=780_000_000)

  Compilation is a phase of its own and is not counted in the phase in which it
  happens. Time between two phases is not counted.
  """

  def __init__(self):
    self._began = self._reported = time.monotonic()
    self._total = collections.defaultdict[str, float](float)
    self._since_report = collections.defaultdict[str, float](float)
    self._phase = None
    self._compiled = collections.Counter()  # in updates, by program
    self._again = []
    self._warm = False

  def __enter__(self) -> 'Meter':
    jax.monitoring.register_event_duration_secs_listener(self._listen)
    return self

  def __exit__(self, *_) -> None:
    jax.monitoring.unregister_event_duration_listener(self._listen)

  def _listen(
    self, event: str, duration_secs: float, **attributes: Any
  ) -> None:
    if event not in _COMPILE_EVENTS:
      return
    if threading.current_thread() is threading.main_thread():
      self._add('compile', duration_secs)
    if event == _COMPILE_EVENTS[-1] and self._phase == 'update':
      name = str(attributes.get('fun_name'))
      if self._warm and self._compiled[name]:
        self._again.append(f'{name} in {duration_secs:.1f} s')
      self._compiled[name] += 1

  def _add(self, phase: str, seconds: float) -> None:
    self._total[phase] += seconds
    self._since_report[phase] += seconds

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Counts the time of the block towards a phase."""
    start, compiled = time.monotonic(), self._total['compile']
    self._phase = name
    try:
      yield
    finally:
      self._phase = None
      compiling = self._total['compile'] - compiled
      self._add(name, max(0.0, time.monotonic() - start - compiling))

  def waiting(self, name: str, items: Iterable[_Item]) -> Iterator[_Item]:
    """Yields items; the wait for each one counts towards a phase."""
    iterator = iter(items)
    while True:
      with self.phase(name):
        try:
          item = next(iterator)
        except StopIteration:
          return
      yield item

  def recompiled(self) -> list[str]:
    """Returns the update programs compiled again since the last call."""
    again, self._again, self._warm = self._again, [], True
    return again

  def report(
    self, *, updates: int, tokens: float, parameters: int
  ) -> dict[str, float]:
    """Returns what was measured since the last report.

      tokens_per_second_per_device = tokens / seconds / devices
      mfu_at_least = 6 parameters tokens / (update seconds devices peak)
      goodput      = update seconds / seconds, since the run began

    mfu_at_least is a lower bound: it counts the multiplications of the update
    for the tokens of the loss, but none for prompts, samples, reference or
    judge. It is reported on the devices of PEAK_FLOPS, and memory where the
    device reports it.

    Args:
      updates: Number of updates since the last report.
      tokens: Number of tokens in the loss.
      parameters: Number of trained parameters.

    Returns:
      These values, seconds_PHASE of each phase, total seconds, and Unix time.
    """
    now = time.monotonic()
    seconds, self._reported = now - self._reported, now
    found = {'time': time.time(), 'updates': updates, 'seconds': seconds}
    for name, value in self._since_report.items():
      found[f'seconds_{name}'] = value
    devices = jax.device_count()
    found['tokens_per_second_per_device'] = tokens / seconds / devices
    found['goodput'] = self._total['update'] / (now - self._began)
    device = jax.local_devices()[0]
    peak = PEAK_FLOPS.get(device.device_kind)
    in_updates = self._since_report['update']
    if peak is not None and in_updates:
      rate = 6 * parameters * tokens / in_updates
      found['mfu_at_least'] = rate / (devices * peak)
    memory = device.memory_stats() or {}
    for name in ('bytes_in_use', 'peak_bytes_in_use', 'bytes_limit'):
      if name in memory:
        found[f'device_{name}'] = memory[name]
    self._since_report.clear()
    return found
