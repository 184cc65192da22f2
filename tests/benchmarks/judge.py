"""Measures a judge's forward pass against its minimal FLOPs.

  python tests/benchmarks/judge.py --judge=reward_model
  python tests/benchmarks/judge.py --judge=likelihood --real=0.5

`--real` is the share of each completion that is not padding. FLOPs count real
tokens only, so computing padding lowers the fraction.
"""

import argparse
import functools

import ablations
import limits
import networks
import protocol

from ipo_md.judges import learned
from ipo_md.sampling import sequences


def main() -> None:
  flags = protocol.parser(__doc__)
  networks.add_flags(flags, 'decoder')
  flags.add_argument(
    '--judge', choices=('reward_model', 'likelihood'), default='reward_model'
  )
  flags.add_argument('--real', type=float, default=1.0)
  ablations.add_flag(flags)
  args = networks.fill(flags.parse_args())
  ablations.apply(args)
  protocol.prepare(args.threads)

  reward = args.judge == 'reward_model'
  model = networks.network(args, reward_head=reward)
  params = networks.init(model, 0)
  judge = functools.partial(getattr(learned, args.judge), model=model)

  def rewards(params, given):
    return sequences.at_real_length(lambda c: judge(params, c).rewards, given)

  given = networks.completions(args)
  real = max(1, round(args.real * args.tokens))
  tokens = given.completions
  given = given.replace(
    completions=tokens.replace(mask=tokens.mask.at[..., real:].set(False))
  )
  program = protocol.compiled(rewards, params, given)
  meter = protocol.Meter(args)
  work = {'judge': lambda: program.run(params, given)}
  protocol.timed(work['judge'])
  times, rates = meter.measure(work)
  shape = argparse.Namespace(**vars(args) | {'tokens': real})
  flops = (limits.encode(shape) + limits.decode(shape, head=not reward)).flops
  meter.report(
    times,
    rates,
    gflop=round(flops / 1e9, 2),
    fraction_of_rate=round(
      1 / meter.ratio(times['judge'], rates, limits.Cost(flops).seconds), 3
    ),
    compile_s=program.seconds,
    temporary_mb=program.temporary_mb,
  )


if __name__ == '__main__':
  main()
