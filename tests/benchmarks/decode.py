"""Measures sampling against its bound, and the share of drawing tokens.

  python tests/benchmarks/decode.py --family=t5
  python tests/benchmarks/decode.py --family=decoder --mixture_coef=0.125
  python tests/benchmarks/decode.py --family=decoder --beside=tokens=128

No completion ends early. `encode` reads the prompts and is measured separately.
`draw` is everything after the logits of policy and reference: the mixture, the
token and its log-probabilities. `--beside` measures other sizes alternately
with the first ones in one process. `beside_over_first` holds the median ratios
of seconds and of seconds over bound, and the ratio of temporary memory.
"""

import argparse
from collections.abc import Callable
import dataclasses
import statistics
from typing import Any

import ablations
import jax
import jax.numpy as jnp
import limits
import networks
import protocol

from ipo_md.sampling import mixture


@dataclasses.dataclass(frozen=True)
class _Case:
  """The work and the bounds for one set of sizes."""

  work: dict[str, Callable[[], Any]]
  bounds: dict[str, limits.Cost]
  sampled: protocol.Compiled


def _case(args: argparse.Namespace) -> _Case:
  model = networks.network(args)
  params = [networks.init(model, seed) for seed in range(2)]
  coefs = (args.mixture_coef,) * args.k
  players = 2 if args.mixture_coef else 1

  def encode(params, prompts):
    return tuple(model.encode(p, prompts) for p in params[:players])

  def sample(params, contexts, rng):
    return mixture.sample(
      model,
      params[0],
      params[1] if players == 2 else None,
      (*contexts, None)[:2],
      rng,
      mixture_coefs=coefs,
      max_new_tokens=args.tokens,
      eos_id=-1,
    )

  def draw(logits, rng):
    """Draws T tokens, each from different logits."""

    def one(n, total):
      token, log_probs = mixture.choose(
        [x + total for x in logits],
        coefs,
        jax.random.fold_in(rng, n),
      )
      return total + 1e-9 * (jnp.sum(token) + sum(map(jnp.sum, log_probs)))

    return jax.lax.fori_loop(0, args.tokens, one, 0.0)

  rng = jax.random.key(0)
  prompts = networks.prompts(args)
  encoded = protocol.compiled(encode, params, prompts)
  contexts = encoded.run(params, prompts)
  sampled = protocol.compiled(sample, params, contexts, rng)
  shape = (args.batch, args.k, args.vocab)
  logits = [jax.random.normal(rng, shape)] * players
  drawn = protocol.compiled(draw, logits, rng)
  return _Case(
    work={
      'encode': lambda: encoded.run(params, prompts),
      'sample': lambda: sampled.run(params, contexts, rng),
      'draw': lambda: drawn.run(logits, rng),
    },
    bounds={
      'encode': limits.encode(args) * players,
      'sample': limits.decode(args) * players,
    },
    sampled=sampled,
  )


def _sizes(text: str) -> dict[str, int]:
  """Parses 'k=8,batch=2' as {'k': 8, 'batch': 2}."""
  pairs = [pair.split('=') for pair in text.split(',')]
  return {name: int(value) for name, value in pairs}


def main() -> None:
  flags = protocol.parser(__doc__)
  networks.add_flags(flags, 't5')
  flags.add_argument('--mixture_coef', type=float, default=0.0)
  flags.add_argument(
    '--beside', type=_sizes, default={}, help='other sizes: k=8,batch=2'
  )
  ablations.add_flag(flags)
  args = networks.fill(flags.parse_args())
  shape = {*networks.SHAPES[args.family], 'batch', 'k', 'tokens'}
  if not shape >= args.beside.keys():
    flags.error(f'--beside: {[*args.beside]} are not all in {[*shape]}.')
  ablations.apply(args)
  protocol.prepare(args.threads)

  cases = {'': _case(args)}
  if args.beside:
    other = argparse.Namespace(**vars(args) | args.beside)
    cases['beside_'] = _case(other)
  meter = protocol.Meter(args)
  work = {
    name + part: f
    for part in ('encode', 'sample', 'draw')
    for name, case in cases.items()
    for f in (case.work[part],)
  }
  for f in work.values():
    protocol.timed(f)
  times, rates = meter.measure(work)
  first = cases['']
  seconds = {name: [*map(meter.seconds, t)] for name, t in times.items()}
  over = lambda a, b: statistics.median(
    x / y for x, y in zip(seconds[a], seconds[b], strict=True)
  )
  ratio = lambda name: round(
    meter.ratio(times[name], rates, first.bounds[name].seconds), 3
  )
  results = {
    'encode_over_bound': ratio('encode'),
    'sample_over_bound': ratio('sample'),
    'gflop': round(first.bounds['sample'].flops / 1e9, 3),
    'gbyte': round(first.bounds['sample'].bytes / 1e9, 3),
    'ms_per_token': round(
      1e3 * statistics.median(seconds['sample']) / args.tokens, 3
    ),
    'draw_share': round(over('draw', 'sample'), 3),
    'compile_s': first.sampled.seconds,
    'temporary_mb': first.sampled.temporary_mb,
  }
  if args.beside:
    beside = cases['beside_']
    ratios = [
      meter.ratios(times[name], rates, case.bounds['sample'].seconds)
      for name, case in (('beside_sample', beside), ('sample', first))
    ]
    results['beside_over_first'] = {
      'encode': round(over('beside_encode', 'encode'), 3),
      'sample': round(over('beside_sample', 'sample'), 3),
      'sample_over_bound': round(
        statistics.median(b / f for b, f in zip(*ratios, strict=True)), 3
      ),
      'temporary_mb': round(
        beside.sampled.temporary_mb / first.sampled.temporary_mb, 3
      ),
    }
  meter.report(times, rates, **results)


if __name__ == '__main__':
  main()
