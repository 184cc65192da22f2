"""Computes lower bounds on the work of each phase of a step.

  python tests/benchmarks/limits.py --family=t5

Prints FLOPs, bytes and the resulting time at this machine's rates:

  bound = max(FLOPs / matmul rate, bytes / bandwidth)

FLOPs are those of matrix products, 2 for each multiplication with its addition.
Causal attention counts as a triangle. Each model reads every prompt once. The
backward pass takes twice the FLOPs of the forward pass. Bytes are those of
weights, contexts and caches, read once for each sampled token.
"""

import argparse
import dataclasses
import json

import jax.numpy as jnp
import networks
import protocol

_MIXED = {'ipo_md': lambda k: k, 'nash_md': lambda k: k - 1}


@dataclasses.dataclass(frozen=True)
class Cost:
  """FLOPs and bytes of some work."""

  flops: float = 0.0
  bytes: float = 0.0

  def __add__(self, other: 'Cost') -> 'Cost':
    return Cost(self.flops + other.flops, self.bytes + other.bytes)

  def __mul__(self, factor: float) -> 'Cost':
    return Cost(self.flops * factor, self.bytes * factor)

  def seconds(self, rates: protocol.Rates) -> float:
    """Returns the bound at the given rates."""
    return max(self.flops / rates.matmul, self.bytes / rates.bandwidth)


def _joined(args: argparse.Namespace) -> int:
  return args.heads * args.head_dim


def _kernels(args: argparse.Namespace) -> tuple[int, int, int]:
  """Counts the weights of an attention, a feed-forward layer and the head."""
  return (
    4 * args.emb_dim * _joined(args),
    3 * args.emb_dim * args.mlp_dim,
    args.emb_dim * args.vocab,
  )


def encode(args: argparse.Namespace) -> Cost:
  """Returns the cost of reading the prompts; its bytes never bind."""
  attention, mlp, _ = _kernels(args)
  b, p = args.batch, args.prompt
  layer = attention + mlp
  pairs = p * p if args.family == 't5' else p * (p + 1) / 2
  if args.family == 't5':
    layer += attention / 2  # cross-attention keys and values
  scores = 2 * _joined(args) * pairs
  return Cost(2 * b * args.layers * (p * layer + scores))


def decode(args: argparse.Namespace, *, head: bool = True) -> Cost:
  """Returns the cost of sampling B K completions of T tokens."""
  attention, mlp, vocab = _kernels(args)
  rows, t, p = args.batch * args.k, args.tokens, args.prompt
  layer = attention + mlp
  if args.family == 't5':
    layer += attention / 2  # cross-attention queries and output
  weights = args.layers * layer + (vocab if head else 0)
  columns = t * p + t * (t + 1) / 2  # seen by the queries of a completion
  scores = 2 * _joined(args) * args.layers * columns
  width = jnp.dtype(args.dtype).itemsize
  context = 2 * _joined(args) * args.layers * args.batch * p * t
  cache = 2 * _joined(args) * args.layers * rows * t * (t + 1) / 2
  return Cost(
    flops=2 * rows * (t * weights + scores),
    bytes=width * (t * weights + context + cache),
  )


def phases(args: argparse.Namespace, algorithm: str) -> dict[str, Cost]:
  """Returns the costs of an online step, with a judge of the policy's size.

  Algorithms differ in how many completions of a prompt mix in the reference.
  """
  flops = lambda cost: Cost(cost.flops)
  mixed = _MIXED.get(algorithm, lambda k: 0)(args.k)
  player = argparse.Namespace(**vars(args) | {'k': mixed})
  sample = encode(args) + decode(args)
  if mixed:
    sample += encode(args) + decode(player)
  # Sampling from the mixture yields the reference's log-probabilities.
  reference = Cost() if mixed == args.k else flops(decode(args))
  if not mixed:
    reference += encode(args)
  return {
    'sample': sample,
    'judge': encode(args) + flops(decode(args, head=False)),
    'reference': reference,
    # The sampler has already done the forward pass over the prompts.
    'loss': encode(args) * 2 + flops(decode(args)) * 3,
  }


def update(args: argparse.Namespace, algorithm: str) -> Cost:
  """Returns the cost of all phases; 'supervised' is an algorithm, too."""
  if algorithm == 'supervised':
    return (encode(args) + Cost(decode(args).flops)) * 3
  return sum(phases(args, algorithm).values(), Cost())


def main() -> None:
  flags = protocol.parser(__doc__)
  networks.add_flags(flags, 'decoder')
  flags.add_argument('--algorithm', default='ipo')
  args = networks.fill(flags.parse_args())
  protocol.prepare(args.threads)
  rates = protocol.Meter(args).rates()
  costs = phases(args, args.algorithm)
  costs['step'] = update(args, args.algorithm)
  costs['supervised'] = update(args, 'supervised')
  line = {'flags': vars(args)}
  for name, cost in costs.items():
    line[name] = {
      'gflop': round(cost.flops / 1e9, 3),
      'gbyte': round(cost.bytes / 1e9, 3),
      'bound_s': round(cost.seconds(rates), 5),
    }
  print(json.dumps(line))


if __name__ == '__main__':
  main()
