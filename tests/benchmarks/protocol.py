"""The protocol by which all benchmarks measure.

The speed of a shared machine varies, so no figure is in seconds alone. One
process on fixed cores measures rates, work, rates, work, ..., rates. A figure
is the median over repetitions of the work, divided by the mean of the rates
just before and just after it. Compilation and a first run come before all that.

  rate        float32 matmul of 1024 x 1024, in FLOP/s
  bandwidth   a read of 256 MB, in bytes/s

XLA allocates the temporaries of a program with malloc at each call and frees
them afterwards. glibc returns the memory to the kernel, which then zeroes pages
again and took between .02 s and .3 s of the same step. The benchmarks therefore
make glibc keep the memory.

Seconds are CPU time of the process (`--clock=cpu`, the default, which suits one
thread on shared cores) or wall time (`--clock=wall`). Both are reported.
"""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import ctypes
import dataclasses
import json
import os
import resource
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

_BANDWIDTH_BYTES = 2**28

# Options of mallopt: large arrays get no mapping of their own, there is one
# arena, and up to 2 GiB of free memory are not returned to the kernel.
_KEEP_MEMORY = {
  'M_MMAP_MAX': (-4, 0),
  'M_ARENA_MAX': (-8, 1),
  'M_TRIM_THRESHOLD': (-1, 2**31 - 1),
}


@dataclasses.dataclass(frozen=True)
class Rates:
  """The current rates of the machine."""

  matmul: float  # FLOP/s, 1024 x 1024 x 1024
  matmul_2048: float | None  # FLOP/s, 2048 x 2048 x 2048
  bandwidth: float  # bytes/s read


@dataclasses.dataclass(frozen=True)
class Seconds:
  """The time of one call."""

  wall: float
  cpu: float


def parser(doc: str) -> argparse.ArgumentParser:
  """Makes a parser with the flags that all benchmarks share."""
  flags = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument('--threads', type=int, default=1, help='number of cores')
  flags.add_argument('--repeats', type=int, default=5)
  flags.add_argument('--clock', choices=('cpu', 'wall'), default='cpu')
  return flags


def prepare(threads: int) -> None:
  """Pins the process to its last cores and keeps freed memory.

  Must be called before JAX computes anything.

  Args:
    threads: Number of cores, and of XLA's threads.

  Raises:
    ValueError: If there are not as many cores.
  """
  cores = sorted(os.sched_getaffinity(0))
  if not 1 <= threads <= len(cores):
    raise ValueError(
      f'--threads={threads} is not between 1 and {len(cores)}, the number of '
      'cores.'
    )
  os.sched_setaffinity(0, cores[-threads:])
  flags = [
    os.environ.get('XLA_FLAGS', ''),
    f'--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}',
    f'intra_op_parallelism_threads={threads}',
  ]
  os.environ['XLA_FLAGS'] = ' '.join(flags).strip()
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc has it
  for name, (number, value) in _KEEP_MEMORY.items() if mallopt else ():
    if not mallopt(number, value):
      raise OSError(f'mallopt({name}, {value}) was refused.')


def timed(f: Callable[[], Any]) -> Seconds:
  """Measures one call until its results are ready."""
  wall, cpu = time.perf_counter(), time.process_time()
  jax.block_until_ready(f())
  return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


class Meter:
  """Measures work between measurements of the machine's rates.

  Args:
    args: Flags of `parser`.
  """

  def __init__(self, args: argparse.Namespace):
    self._args = args
    square = lambda n: jax.random.normal(jax.random.key(0), (n, n))
    self._small, self._large = square(1024), square(2048)
    self._read = jnp.ones(_BANDWIDTH_BYTES // 4)
    self._matmul = jax.jit(lambda x: x @ x)
    # A maximum reads as fast as the memory allows; a float sum is in order.
    self._maximum = jax.jit(jnp.max)
    self.rates(large=True)

  def seconds(self, times: Seconds) -> float:
    """Returns the time by the clock that the flags select."""
    return getattr(times, self._args.clock)

  def rates(self, large: bool = False) -> Rates:
    """Measures the rates of the machine."""

    def best(f, *x):
      return min(self.seconds(timed(lambda: f(*x))) for _ in range(3))

    return Rates(
      matmul=2 * 1024**3 / best(self._matmul, self._small),
      matmul_2048=2 * 2048**3 / best(self._matmul, self._large)
      if large
      else None,
      bandwidth=_BANDWIDTH_BYTES / best(self._maximum, self._read),
    )

  def measure(
    self, work: dict[str, Callable[[], Any]]
  ) -> tuple[dict[str, list[Seconds]], list[Rates]]:
    """Measures `repeats` repetitions of each piece of work.

    Args:
      work: Pieces of work by name.

    Returns:
      The times by name, and the rates. Repetition i of every piece runs between
      the measurements of rates i and i + 1.
    """
    times = {name: [] for name in work}
    rates = [self.rates()]
    for _ in range(self._args.repeats):
      for name, f in work.items():
        times[name].append(timed(f))
      rates.append(self.rates())
    return times, rates

  def ratios(
    self,
    times: Sequence[Seconds],
    rates: Sequence[Rates],
    bound: Callable[[Rates], float],
  ) -> list[float]:
    """Returns seconds over `bound(rates)` seconds of each repetition."""
    return [
      self.seconds(t) / ((bound(before) + bound(after)) / 2)
      for t, before, after in zip(times, rates[:-1], rates[1:], strict=True)
    ]

  def ratio(self, *args: Any) -> float:
    """Returns the median of `ratios`."""
    return statistics.median(self.ratios(*args))

  def report(
    self,
    times: dict[str, list[Seconds]],
    rates: list[Rates],
    **results: Any,
  ) -> None:
    """Prints one line of JSON."""
    median = lambda values: round(statistics.median(values), 5)
    line = {
      'flags': vars(self._args),
      'gflops_per_s': median(r.matmul / 1e9 for r in rates),
      'gflops_per_s_2048': round(self.rates(large=True).matmul_2048 / 1e9, 1),
      'gbytes_per_s': median(r.bandwidth / 1e9 for r in rates),
      'wall_s': {k: median(t.wall for t in v) for k, v in times.items()},
      'cpu_s': {k: median(t.cpu for t in v) for k, v in times.items()},
      'process_peak_gb': round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
      ),
    }
    print(json.dumps(line | results))


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program compiled ahead of time, and the cost of compiling it."""

  run: Callable[..., Any]
  seconds: float
  temporary_mb: float  # without arguments and results


def compiled(f: Callable[..., Any], *args: Any, donate: int = -1) -> Compiled:
  """Compiles f for arguments of the same shapes.

  Args:
    f: Function to compile.
    *args: Arguments that give the shapes.
    donate: Number of the argument that is donated; -1 donates none.
  """
  jitted = jax.jit(f, donate_argnums=() if donate < 0 else donate)
  start = time.perf_counter()
  program = jitted.lower(*args).compile()
  return Compiled(
    run=program,
    seconds=round(time.perf_counter() - start, 2),
    temporary_mb=round(program.memory_analysis().temp_size_in_bytes / 2**20, 1),
  )
