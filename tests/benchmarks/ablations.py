"""Adds `--without=NAME`, which removes one optimisation from a benchmark."""

import argparse

from ipo_md.algorithms import objective
from ipo_md.models import cpu_layouts
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
  cpu_layouts.STRIP_COLUMNS = 2**30


def _real_length():
  sequences.LEAST_WIDTH = 2**30


_WITHOUT = {
  'decode_form': _decode_form,  # the loop reads the training weights
  'shared_prompts': _shared_prompts,  # the loss encodes the prompts again
  'cache_blocks': _cache_blocks,  # caches start with their full width
  'strips': _strips,  # keys are not in strips on a CPU
  'real_length': _real_length,  # judge and reference read all padding
}


def add_flag(flags: argparse.ArgumentParser) -> None:
  """Adds the flag to a parser."""
  flags.add_argument('--without', choices=list(_WITHOUT))


def apply(args: argparse.Namespace) -> None:
  """Removes the optimisation that the flag names."""
  if args.without:
    _WITHOUT[args.without]()
