"""Compares the cost of reading a batch with an update of the smoke run.

  python tests/benchmarks/reading.py

Prints milliseconds of CPU time for a batch and for an update, whose ratio is
also valid on a busy machine. Then it prints the time of updates on one fixed
batch and on batches that the prefetch thread of the training loop reads.
"""

import argparse
from collections.abc import Callable
import functools
import time

import gin
import jax
import jax.numpy as jnp

from ipo_md.core import gin_config
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.data import batches

_FILES = (
  'gin/runs/supervised.gin',
  'gin/models/t5_tiny.gin',
  'gin/tasks/mini_tldr.gin',
  'gin/smoke.gin',
)
_BINDINGS = ("MODEL_DIR = '/unused'", 'TRAIN_STEPS = 1000')
_UPDATES = 40


def _timed(function: Callable[[], None]) -> tuple[float, float]:
  """Returns wall seconds, and CPU seconds of all threads of the process."""
  wall, cpu = time.perf_counter(), time.process_time()
  function()
  return time.perf_counter() - wall, time.process_time() - cpu


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--blocks', type=int, default=5)
  blocks = parser.parse_args().blocks
  gin_config.add_root()
  gin_config.parse(_FILES, _BINDINGS)
  run = gin.get_bindings('training.train')
  model, mesh = run['model'], sharding.make_mesh(run['mesh_shape'])
  optimizer = run['optimizer'](model.logical_axes)
  with jax.set_mesh(mesh):
    read = batches.Batches(
      run['dataset'](),
      batch_size=run['batch_size'],
      seed=0,
      sharding=sharding.batch(mesh),
    )
    params = model.init(jax.random.key(0))
    state = types.TrainState(jnp.int32(0), params, optimizer.init(params))
    update = jax.jit(
      functools.partial(run['step'], model=model, optimizer=optimizer),
      donate_argnums=0,
    )
    frozen, rng, first = types.FrozenParams(), jax.random.key(0), read(0)

    def steps(source):
      nonlocal state
      for batch in source:
        state, metrics = update(state, frozen, batch, rng)
      jax.block_until_ready(metrics)

    steps([first] * 2)
    alone = [_timed(lambda: [read(n) for n in range(_UPDATES)])]
    fixed, prefetched = [], []
    for _ in range(blocks):
      fixed.append(_timed(lambda: steps([first] * _UPDATES)))
      prefetched.append(
        _timed(lambda: steps(batches.prefetch(read, range(_UPDATES))))
      )
  scale = 1000 / _UPDATES
  wall = [min(w for w, _ in times) * scale for times in (fixed, prefetched)]
  cpu = [min(c for _, c in times) * scale for times in (alone, fixed)]
  print(
    f'CPU: batch {cpu[0]:.2f} ms, update {cpu[1]:.1f} ms, '
    f'ratio {cpu[0] / cpu[1]:.2%}'
  )
  print(
    f'Best of {blocks}: an update takes {wall[0]:.1f} ms on one batch, '
    f'{wall[1]:.1f} ms with prefetched ones'
  )


if __name__ == '__main__':
  main()
