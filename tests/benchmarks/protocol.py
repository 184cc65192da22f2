"""How every benchmark here measures.

The rate of a shared machine moves, so nothing is quoted in seconds alone. One
process on fixed cores measures rates, work, rates, work, ..., rates; a figure
is the median over the repetitions of work divided by the mean of the rates
just before and just after it. Compilation and a first run come before, apart.

  rate        float32 matmul of 1024 x 1024, in FLOP/s
  bandwidth   a read of 256 MB, in bytes/s

XLA takes the memory of a program's temporaries from malloc at each call and
gives it back after it. glibc hands that back to the kernel, whose zeroing of
pages took from .02 s to .3 s of the same step, by turns; so here it is kept.

Seconds are of the CPU (`--clock=cpu`, what the process itself used; the
default, right where other processes share the cores and there is one thread)
or of the wall (`--clock=wall`). Both are reported.
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

# mallopt's names for: no memory of its own for a large array, one arena, and
# nothing given back to the kernel below 2 GiB.
_KEEP_MEMORY = {
  'M_MMAP_MAX': (-4, 0),
  'M_ARENA_MAX': (-8, 1),
  'M_TRIM_THRESHOLD': (-1, 2**31 - 1),
}


@dataclasses.dataclass(frozen=True)
class Rates:
  """What the machine does at the moment."""

  matmul: float  # FLOP/s, 1024 x 1024 x 1024
  matmul_2048: float | None  # FLOP/s, 2048 x 2048 x 2048
  bandwidth: float  # bytes/s read


@dataclasses.dataclass(frozen=True)
class Seconds:
  wall: float
  cpu: float


def parser(doc: str) -> argparse.ArgumentParser:
  """The flags that all benchmarks share."""
  flags = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument('--threads', type=int, default=1, help='cores used')
  flags.add_argument('--repeats', type=int, default=5)
  flags.add_argument('--clock', choices=('cpu', 'wall'), default='cpu')
  return flags


def prepare(threads: int) -> None:
  """Pins the process to its last `threads` cores, with as many XLA threads.

  Keeps freed memory too. To be called before JAX computes anything.
  """
  cores = sorted(os.sched_getaffinity(0))
  if not 1 <= threads <= len(cores):
    raise ValueError(f'--threads={threads}: there are {len(cores)} cores.')
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
  """Of one call, until its results are there."""
  wall, cpu = time.perf_counter(), time.process_time()
  jax.block_until_ready(f())
  return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


class Meter:
  """Measures work between measurements of the machine's rates."""

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
    return getattr(times, self._args.clock)

  def rates(self, large: bool = False) -> Rates:
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
    """Times of each piece of work, `repeats` of each, and the rates around it.

    All pieces are run between two measurements of the rates: repetition i of
    each lies between rates i and i + 1.
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
    """Seconds over `bound(rates)` seconds of each repetition."""
    return [
      self.seconds(t) / ((bound(before) + bound(after)) / 2)
      for t, before, after in zip(times, rates[:-1], rates[1:], strict=True)
    ]

  def ratio(self, *args: Any) -> float:
    """The median of `ratios`."""
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
  """A program, compiled ahead, and what that took."""

  run: Callable[..., Any]
  seconds: float
  temporary_mb: float  # beside arguments and results


def compiled(f: Callable[..., Any], *args: Any, donate: int = -1) -> Compiled:
  """Compiles f for arguments like these."""
  jitted = jax.jit(f, donate_argnums=() if donate < 0 else donate)
  start = time.perf_counter()
  program = jitted.lower(*args).compile()
  return Compiled(
    run=program,
    seconds=round(time.perf_counter() - start, 2),
    temporary_mb=round(program.memory_analysis().temp_size_in_bytes / 2**20, 1),
  )
