"""Measures the host's work: batches, metrics and checkpoints.

  python tests/benchmarks/data.py
  python tests/benchmarks/data.py --threads=2 --clock=wall

Prints the time to make one batch. It also prints the time of `--steps`
supervised updates with prefetched batches, without and with metrics and a
checkpoint, relative to the same number of updates on one fixed batch. With a
single thread, the host's work and the updates share a core.
"""

import statistics
import tempfile

import jax
import jax.numpy as jnp
import networks
import numpy as np
import protocol
import seqio

from ipo_md.algorithms import supervised
from ipo_md.checkpoints import manager
from ipo_md.core import metrics as metrics_lib
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.data import batches
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import examples
from ipo_md.data import prompt_format
from ipo_md.optim import optimizers


def _dataset(args) -> dataset_lib.Dataset:
  """Makes 4,096 examples of random tokens and lengths."""
  rng = np.random.default_rng(0)

  def ragged(longest):
    starts = np.cumsum([0, *rng.integers(longest // 2, longest + 1, 4096)])
    ids = rng.integers(2, args.vocab, starts[-1])
    return examples.Ragged(ids=ids.astype(np.int32), starts=starts)

  vocabulary = seqio.PassThroughVocabulary(args.vocab)
  return dataset_lib.Dataset(
    examples=(
      examples.Examples(
        name='random',
        prompts=ragged(args.prompt),
        targets=ragged(args.tokens),
        k=1,
        scores={},
      ),
    ),
    rates=(1.0,),
    lengths={'inputs': args.prompt, 'targets': args.tokens},
    prompt_format=prompt_format.PromptFormat(vocabulary=vocabulary),
    prompts_only=False,
    vocabulary=vocabulary,
    counts={},
  )


def main() -> None:
  flags = protocol.parser(__doc__)
  networks.add_flags(flags, 'decoder')
  flags.add_argument('--steps', type=int, default=10)
  args = networks.fill(flags.parse_args())
  protocol.prepare(args.threads)

  model = networks.network(args)
  optimizer = optimizers.adam(model.logical_axes, learning_rate=1e-6)
  params = networks.init(model, 0)
  state = types.TrainState(
    step=jnp.int32(0), params=params, opt_state=optimizer.init(params)
  )
  dataset = _dataset(args)
  batch_of = batches.Batches(
    dataset,
    batch_size=args.batch,
    seed=0,
    sharding=sharding.batch(sharding.make_mesh((-1, 1, 1))),
  )

  def update(state, batch):
    return supervised.supervised_step(
      state, None, batch, None, model=model, optimizer=optimizer, z_loss=0.0
    )

  first = batch_of(0)
  program = protocol.compiled(update, state, first, donate=0)
  meter = protocol.Meter(args)
  states = {'state': state}
  with (
    tempfile.TemporaryDirectory() as folder,
    manager.open_manager(folder, keep=manager.Keep(last=1)) as saved,
    metrics_lib.MetricWriter(folder) as writer,
  ):

    def run(feed, save=False):
      for batch in feed:
        states['state'], metrics = program.run(states['state'], batch)
        if save:
          metrics = jax.device_get(metrics)
          writer.scalars(int(states['state'].step), metrics)
      if save:
        manager.save(saved, states['state'], dataset.vocabulary)
      return states['state']

    prefetched = lambda: batches.prefetch(batch_of, range(args.steps))
    work = {
      'batch': lambda: batch_of(1),
      'fixed': lambda: run([first] * args.steps),
      'prefetched': lambda: run(prefetched()),
      'saved': lambda: run(prefetched(), save=True),
    }
    for f in work.values():
      protocol.timed(f)
    times, rates = meter.measure(work)
    manager.wait(saved)
  over = lambda name: statistics.median(
    meter.seconds(t) / meter.seconds(fixed)
    for t, fixed in zip(times[name], times['fixed'], strict=True)
  )
  meter.report(
    times,
    rates,
    prefetched_over_fixed=round(over('prefetched'), 3),
    saved_over_fixed=round(over('saved'), 3),
  )


if __name__ == '__main__':
  main()
