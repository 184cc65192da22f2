"""Sampling: seconds against its bound, and the share of drawing tokens.

  python tests/benchmarks/decode.py --family=t5
  python tests/benchmarks/decode.py --family=decoder --mixture_coef=0.125

No completion ends early. The prompts are read before, `encode` apart. `draw`
is everything after the logits of policy and reference: the mixture, the token,
its log-probabilities.
"""

import ablations
import jax
import jax.numpy as jnp
import limits
import networks
import protocol

from ipo_md import sampling


def main() -> None:
  flags = protocol.parser(__doc__)
  networks.add_flags(flags, 't5')
  flags.add_argument('--mixture_coef', type=float, default=0.0)
  ablations.add_flag(flags)
  args = networks.fill(flags.parse_args())
  ablations.apply(args)
  protocol.limit_threads(args.threads)

  model = networks.network(args)
  params = [networks.init(model, seed) for seed in range(2)]
  coefs = (args.mixture_coef,) * args.k
  players = 2 if args.mixture_coef else 1

  def encode(params, prompts):
    return tuple(model.encode(p, prompts) for p in params[:players])

  def sample(params, contexts, rng):
    return sampling.sample(
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
    """T draws, each from other logits."""

    def one(n, total):
      token, log_probs = sampling.choose(
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

  meter = protocol.Meter(args)
  work = {
    'encode': lambda: encoded.run(params, prompts),
    'sample': lambda: sampled.run(params, contexts, rng),
    'draw': lambda: drawn.run(logits, rng),
  }
  for f in work.values():
    protocol.timed(f)
  times, rates = meter.measure(work)
  bounds = {
    'encode': limits.encode(args) * players,
    'sample': limits.decode(args) * players,
  }
  ratio = lambda name: round(
    meter.ratio(times[name], rates, bounds[name].seconds), 3
  )
  meter.report(
    times,
    rates,
    encode_over_bound=ratio('encode'),
    sample_over_bound=ratio('sample'),
    gflop=round(bounds['sample'].flops / 1e9, 3),
    gbyte=round(bounds['sample'].bytes / 1e9, 3),
    ms_per_token=round(
      1e3
      * sorted(map(meter.seconds, times['sample']))[args.repeats // 2]
      / args.tokens,
      3,
    ),
    draw_share=round(
      sorted(
        meter.seconds(d) / meter.seconds(s)
        for d, s in zip(times['draw'], times['sample'], strict=True)
      )[args.repeats // 2],
      3,
    ),
    compile_s=sampled.seconds,
    temporary_mb=sampled.temporary_mb,
  )


if __name__ == '__main__':
  main()
