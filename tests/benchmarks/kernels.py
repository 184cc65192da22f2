"""Measures products of few rows with kernels in each memory layout.

  python tests/benchmarks/kernels.py --rows=16 --inputs=512 --outputs=1024

The kernels take 128 MB together, so that each one is read from memory.
`of_rate` holds the fractions of the rate of a large matrix product.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import limits
import protocol

from ipo_md.models import cpu_layouts
from ipo_md.models import layers

_BYTES = 2**27


# How W is stored, and its product with x.
_ORDERS = {
  'kernel': (lambda w: w, lambda w, x: x @ w),
  'transposed': (jnp.transpose, lambda w, x: layers.project(x, w, 1)),
  'panels': (cpu_layouts.in_panels, lambda w, x: x @ w),
}


def main() -> None:
  flags = protocol.parser(__doc__)
  flags.add_argument('--rows', type=int, default=16)
  flags.add_argument('--inputs', type=int, default=512)
  flags.add_argument('--outputs', type=int, default=1024)
  args = flags.parse_args()
  protocol.prepare(args.threads)

  size = args.inputs * args.outputs
  n = max(2, _BYTES // (4 * size))
  cost = limits.Cost(flops=2 * args.rows * size * n)
  rows = jax.random.normal(jax.random.key(0), (args.rows, args.inputs))
  work = {}
  for name, (store, product) in _ORDERS.items():
    stored = [
      jax.jit(store)(jnp.full((args.inputs, args.outputs), 1.0 + i))
      for i in range(n)
    ]

    def run(stored, rows, product=product):
      # Each result is complete before the next product starts.
      return [lax.optimization_barrier(product(w, rows)) for w in stored]

    program = protocol.compiled(run, stored, rows)
    work[name] = functools.partial(program.run, stored, rows)
    protocol.timed(work[name])
  meter = protocol.Meter(args)
  times, rates = meter.measure(work)
  of_rate = {
    name: round(1 / meter.ratio(times[name], rates, cost.seconds), 3)
    for name in work
  }
  meter.report(times, rates, kernels=n, of_rate=of_rate)


if __name__ == '__main__':
  main()
