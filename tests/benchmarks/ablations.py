"""`--without=NAME`: a benchmark with one optimisation taken out again."""

import argparse

from ipo_md.algorithms import objective
from ipo_md.models import kv_cache
from ipo_md.models import model as model_lib
from ipo_md.sampling import mixture
from ipo_md.sampling import sequences


def _decode_form():
  model_lib.Model.decode_form = lambda self, params, **_: params


def _shared_prompts():
  shared = objective.policy_loss
  objective.policy_loss = lambda *args, context, **kwargs: shared(
    *args, **kwargs
  )


def _cache_blocks():
  mixture.CACHE_BLOCK = 2**30


def _strips():
  kv_cache._STRIP = 2**30


def _real_length():
  sequences.LEAST_WIDTH = 2**30


_WITHOUT = {
  'decode_form': _decode_form,  # weights as they are trained, in the loop
  'shared_prompts': _shared_prompts,  # the loss reads the prompts again
  'cache_blocks': _cache_blocks,  # caches of full width from the start
  'strips': _strips,  # keys of full width, on a CPU too
  'real_length': _real_length,  # judge and reference read all padding
}


def add_flag(flags: argparse.ArgumentParser) -> None:
  flags.add_argument('--without', choices=list(_WITHOUT))


def apply(args: argparse.Namespace) -> None:
  if args.without:
    _WITHOUT[args.without]()
