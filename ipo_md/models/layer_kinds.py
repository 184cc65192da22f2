"""Layers of one stack that differ in what they see and whether they rotate.

The parameters of all layers have the same shapes. What differs are arrays that
a stack computes once, the rotations and the biases of attention:

  kinds = layer_kinds.distinct(cfg)
  arrays = [compute(kind) for kind in kinds]
  layer_kinds.choose(arrays, number)      # in a layer with this number

A stack of a single kind has no numbers, and `choose` returns its only arrays.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from ipo_md.models import decoder_config


class Kind(NamedTuple):
  """What tells the layers of a decoder-only network apart."""

  local: bool  # whether it has the sliding window
  rotates: bool  # whether queries and keys are rotated


def of_layers(cfg: decoder_config.DecoderOnlyConfig) -> list[Kind]:
  """Returns the kind of every layer. Patterns are repeated over the layers."""
  at = lambda pattern, i: pattern[i % len(pattern)]
  windowed = cfg.sliding_window is not None
  return [
    Kind(windowed and at(cfg.local_layers, i), at(cfg.rope_layers, i))
    for i in range(cfg.num_layers)
  ]


def distinct(cfg: decoder_config.DecoderOnlyConfig) -> list[Kind]:
  """Returns the kinds that some layer has."""
  return sorted(set(of_layers(cfg)))


def numbers(cfg: decoder_config.DecoderOnlyConfig) -> Any:
  """Returns the number in `distinct` of every layer's kind.

  Returns:
    An array [L] if the layers are scanned, and otherwise a list; None if all
    layers are of one kind.
  """
  kinds = distinct(cfg)
  if len(kinds) == 1:
    return None
  found = [kinds.index(kind) for kind in of_layers(cfg)]
  return jnp.array(found, jnp.int32) if cfg.scan else found


def choose(arrays: Sequence[Any], number: jax.Array | int | None) -> Any:
  """Returns the arrays of one kind.

  Args:
    arrays: One tree of arrays for each kind. All have the same shapes.
    number: Number of the kind; None if there is one.
  """
  if number is None or isinstance(number, int):
    return arrays[number or 0]
  return jax.tree.map(lambda *xs: lax.select_n(number, *xs), *arrays)
