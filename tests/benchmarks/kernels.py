"""Products of few rows with kernels in each order, as sampling has them.

  python tests/benchmarks/kernels.py --rows=16 --inputs=512 --outputs=1024

There are as many kernels as hold 128 MB, so that each comes from memory when
its turn is there. `of_rate` has the fractions of the rate of a large matmul.
"""

import jax
from jax import lax
import jax.numpy as jnp
import limits
import protocol

from ipo_md.models import layers
from ipo_md.models import packed_kernels

_BYTES = 2**27


# What is kept of W, and its product with x.
_ORDERS = {
  'kernel': (lambda w: w, lambda w, x: x @ w),
  'transposed': (jnp.transpose, lambda w, x: layers.project(x, w, 1)),
  'panels': (packed_kernels.in_panels, lambda w, x: x @ w),
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
  for name, (keep, product) in _ORDERS.items():
    kept = [
      jax.jit(keep)(jnp.full((args.inputs, args.outputs), 1.0 + i))
      for i in range(n)
    ]

    def run(kept, rows, product=product):
      # Each result is made in full before the next product.
      return [lax.optimization_barrier(product(w, rows)) for w in kept]

    program = protocol.compiled(run, kept, rows)
    work[name] = lambda program=program, kept=kept: program.run(kept, rows)
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
