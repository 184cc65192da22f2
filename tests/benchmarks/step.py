"""Measures a whole update against its minimal FLOPs.

  python tests/benchmarks/step.py
  python tests/benchmarks/step.py --algorithm=ipo_md
  python tests/benchmarks/step.py --family=t5 --algorithm=supervised

The default is online IPO with a small decoder and a reward model of its size.
No completion ends early. `fraction_of_rate` is minimal FLOPs per second over
the rate of a large matrix product. Several algorithms, separated by commas, are
measured alternately in one process. `over_first` is the time relative to the
first algorithm. `extra_over_sample` is the additional time relative to the time
in which the policy reads the prompts and samples.
"""

import functools
import statistics

import ablations
import jax
import jax.numpy as jnp
import limits
import networks
import protocol

from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.algorithms import online
from ipo_md.algorithms import supervised
from ipo_md.core import types
from ipo_md.judges import learned
from ipo_md.optim import optimizers
from ipo_md.sampling import mixture
from ipo_md.sampling import sampler

_LOSSES = {
  'ipo': functools.partial(losses.ipo, tau=0.1),
  'ipo_md': functools.partial(losses.ipo, tau=0.1),
  'dpo': functools.partial(losses.dpo, beta=0.1),
  'slic': functools.partial(losses.slic, beta=0.1),
  'nash_md': functools.partial(losses.policy_gradient, tau=0.1),
  'rl': functools.partial(losses.reinforce, tau=0.1),
  'nca': functools.partial(losses.nca, beta=0.1, alpha=0.1),
  'info_nca': functools.partial(losses.info_nca, beta=0.1, alpha=0.1),
}


def _update(algorithm, args, model, judge_model, optimizer):
  """Returns the step of an algorithm, without its state and batch."""
  if algorithm == 'supervised':
    return functools.partial(
      supervised.supervised_step, model=model, optimizer=optimizer, z_loss=0.0
    )
  coefs = [0.0] * args.k
  if algorithm == 'ipo_md':
    coefs = [0.125] * args.k
  if algorithm == 'nash_md':
    coefs[1:] = [0.125] * (args.k - 1)
  return functools.partial(
    online.online_step,
    model=model,
    feedback=objective.Feedback(
      judge=functools.partial(learned.reward_model, model=judge_model)
    ),
    loss=_LOSSES[algorithm],
    optimizer=optimizer,
    mixture_coefs=coefs,
    sampler=sampler.Sampler(max_new_tokens=args.tokens, eos_id=-1),
  )


def _sampling(args, model):
  """Returns a function (params, prompts, rng) -> samples of the policy."""

  def sample(params, prompts, rng):
    return mixture.sample(
      model,
      params,
      None,
      (model.encode(params, prompts), None),
      rng,
      mixture_coefs=[0.0] * args.k,
      max_new_tokens=args.tokens,
      eos_id=-1,
    )

  return sample


def main() -> None:
  flags = protocol.parser(__doc__)
  networks.add_flags(flags, 'decoder')
  flags.add_argument('--algorithm', default='ipo')
  ablations.add_flag(flags)
  args = networks.fill(flags.parse_args())
  ablations.apply(args)
  protocol.prepare(args.threads)

  model = networks.network(args)
  judge_model = networks.network(args, reward_head=True)
  optimizer = optimizers.adam(model.logical_axes, learning_rate=1e-6)
  frozen = types.FrozenParams(
    reference=networks.init(model, 1), judge=networks.init(judge_model, 2)
  )
  meter = protocol.Meter(args)
  names = args.algorithm.split(',')
  work, programs, states = {}, {}, {}
  for name in names:
    params = networks.init(model, 0)
    states[name] = types.TrainState(
      step=jnp.int32(0), params=params, opt_state=optimizer.init(params)
    )
    batch = networks.prompts(args)
    if name == 'supervised':
      given = networks.completions(args)
      batch = types.Labelled(
        completions=given,
        completion_mask=jnp.ones((args.batch, args.k), bool),
      )
    update = _update(name, args, model, judge_model, optimizer)
    programs[name] = protocol.compiled(
      update, states[name], frozen, batch, jax.random.key(0), donate=0
    )

    def run(name=name, batch=batch):
      states[name], metrics = programs[name].run(
        states[name], frozen, batch, jax.random.key(0)
      )
      return metrics

    work[name] = run
    protocol.timed(run)
  if len(names) > 1:
    given = (networks.init(model, 0), networks.prompts(args), jax.random.key(0))
    sample = protocol.compiled(_sampling(args, model), *given)
    work['sample'] = lambda: sample.run(*given)
    protocol.timed(work['sample'])
  times, rates = meter.measure(work)
  costs = {name: limits.update(args, name) for name in names}
  seconds = {name: [*map(meter.seconds, t)] for name, t in times.items()}
  results = {
    name: {
      'gflop': round(costs[name].flops / 1e9, 2),
      'fraction_of_rate': round(
        1
        / meter.ratio(
          times[name], rates, limits.Cost(costs[name].flops).seconds
        ),
        3,
      ),
      'over_first': round(
        statistics.median(
          t / first
          for t, first in zip(seconds[name], seconds[names[0]], strict=True)
        ),
        3,
      ),
      'compile_s': programs[name].seconds,
      'temporary_mb': programs[name].temporary_mb,
    }
    for name in names
  }
  for name in names[1:]:
    results[name]['extra_over_sample'] = round(
      statistics.median(
        (t - first) / sample
        for t, first, sample in zip(
          *(seconds[x] for x in (name, names[0], 'sample')), strict=True
        )
      ),
      3,
    )
  meter.report(times, rates, **results)


if __name__ == '__main__':
  main()
