"""Counts model FLOPs and the bytes that sampling must read.

The product of [M, A] and [A, B] takes 2 M A B FLOPs. A network that reads N
tokens takes 2 N FLOPs for each weight that multiplies them. Its attention takes
4 FLOPs per head feature for each pair of a query and a column that the query
sees. Recomputation, norms and softmaxes do not count: these are the FLOPs of
the model, not of a program.
"""

import dataclasses
import math
from typing import Any

import jax

from ipo_md import models
from ipo_md.core import types


@dataclasses.dataclass(frozen=True)
class Network:
  """The sizes that the formulas need.

  Attributes:
    prompt_weights: Weights that multiply each token of a prompt.
    completion_weights: Weights that multiply each token of a completion,
      without the head.
    head_weights: Weights of the vocabulary's head.
    stored_weights: The completion weights with all experts of a mixture.
    prompt_width: Number of heads times head size, summed over the layers that
      a prompt passes through.
    completion_width: The same sum over the layers of a completion.
    key_width: The same sum over the heads of keys of a completion.
    encoder_decoder: Whether the tokens of a prompt see each other in both
      directions.
  """

  prompt_weights: int
  completion_weights: int
  head_weights: int
  stored_weights: int
  prompt_width: int
  completion_width: int
  key_width: int
  encoder_decoder: bool

  def encode(self, rows: int, length: int) -> int:
    """Returns the FLOPs of reading `rows` prompts of `length` tokens once."""
    pairs = length**2
    if not self.encoder_decoder:
      pairs = length * (length + 1) // 2
    tokens = 2 * length * self.prompt_weights
    return rows * (tokens + 4 * self.prompt_width * pairs)

  def decode(
    self, rows: int, length: int, prompt: int, *, head: bool = True
  ) -> int:
    """Returns the FLOPs of decoding completions.

    Args:
      rows: Number of completions.
      length: Tokens of a completion.
      prompt: Tokens of a prompt.
      head: Whether logits are computed.
    """
    pairs = length * prompt + length * (length + 1) // 2
    weights = self.completion_weights + (self.head_weights if head else 0)
    return rows * (2 * length * weights + 4 * self.completion_width * pairs)

  def token_bytes(
    self,
    prompts: int,
    rows: int,
    length: int,
    prompt: int,
    *,
    item: int,
    weight_item: int,
  ) -> float:
    """Returns the mean number of bytes that sampling one token reads.

    Args:
      prompts: Number of prompts whose contexts are read.
      rows: Number of completions.
      length: Tokens of a completion.
      prompt: Tokens of a prompt.
      item: Bytes of a number in contexts and caches.
      weight_item: Bytes of a weight.
    """
    weights = self.stored_weights + self.head_weights
    context = 2 * prompts * prompt * self.key_width
    cache = 2 * rows * (length + 1) / 2 * self.key_width
    return weight_item * weights + item * (context + cache)


def network(model: models.Model) -> Network:
  """Returns the sizes of a T5 or of a decoder-only model."""
  config = model.base.config
  params = model.base.abstract_params
  decoder = params['decoder']
  tied = config.logits_via_embedding
  head = params['token_embedder'] if tied else decoder['logits_dense']
  stack = decoder['layers']
  if isinstance(config, models.T5Config):
    cross = stack['encoder_decoder_attention']
    keys_values = count(cross['key']) + count(cross['value'])
    completion = count(stack) - keys_values
    joined = config.num_heads * config.head_dim
    width = config.num_decoder_layers * joined
    return Network(
      prompt_weights=count(params['encoder']['layers']) + keys_values,
      completion_weights=completion,
      head_weights=count(head),
      stored_weights=completion,
      prompt_width=config.num_encoder_layers * joined,
      completion_width=width,
      key_width=width,
      encoder_decoder=True,
    )
  active = stored = count(stack)
  if config.num_experts > 1:
    experts = count(stack['mlp']['experts'])
    used = experts * config.num_experts_per_token // config.num_experts
    active = stored - experts + used
  width = config.num_layers * config.head_dim
  return Network(
    prompt_weights=active,
    completion_weights=active,
    head_weights=count(head),
    stored_weights=stored,
    prompt_width=width * config.num_heads,
    completion_width=width * config.num_heads,
    key_width=width * config.num_kv_heads,
    encoder_decoder=False,
  )


def count(params: types.Params) -> int:
  """Counts the weights of all kernels and norms in a tree."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


class Recorder:
  """Wraps a model and records what it is asked to read.

  All other attributes are those of the model.

  Args:
    model: Model to wrap.
  """

  def __init__(self, model: models.Model):
    self._model = model
    self._network = network(model)
    self._encoded = []  # (rows, length)
    self._decoded = []  # (rows, length, prompt)
    self._projects = False

  @property
  def flops(self) -> int:
    """FLOPs of one forward pass over everything that was read."""
    encoded = sum(self._network.encode(*sizes) for sizes in self._encoded)
    return encoded + sum(
      self._network.decode(*sizes, head=self._projects)
      for sizes in self._decoded
    )

  def __getattr__(self, name: str) -> Any:
    return getattr(self._model, name)

  def encode(self, params, prompts, **kwargs):
    self._encoded.append(prompts.ids.shape)
    return self._model.encode(params, prompts, **kwargs)

  def decode(self, params, ids, context, *args, **kwargs):
    b, k, t = ids.shape
    self._decoded.append((b * k, t, context.mask.shape[-1]))
    return self._model.decode(params, ids, context, *args, **kwargs)

  def logits(self, params, hidden):
    self._projects = True
    return self._model.logits(params, hidden)
