"""The data that the parts of a run exchange.

Axis letters, used in every docstring of the package:
  B prompts, K completions of a prompt, P prompt tokens, T completion tokens,
  V vocabulary, L layers, H heads, D head size, E model size.
"""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import flax.struct
import jax

Params = Any  # a tree of arrays, as `Model.init` makes it
OptState = Any


class Vocabulary(Protocol):
  """What the package needs of a vocabulary.

  Every `seqio.Vocabulary` satisfies this protocol.
  """

  @property
  def vocab_size(self) -> int:
    """Number of ids, extra ids included."""
    ...

  @property
  def eos_id(self) -> int | None: ...

  @property
  def bos_id(self) -> int | None: ...

  @property
  def pad_id(self) -> int: ...

  @property
  def unk_id(self) -> int | None:
    """Id of text that the vocabulary lacks, or None."""
    ...

  def encode(self, text: str, /) -> Sequence[int]:
    """Tokenises a text without adding BOS or EOS."""
    ...

  def decode(self, ids: Iterable[int], /) -> str:
    """Returns the text of token ids up to the first EOS."""
    ...


@flax.struct.dataclass
class Tokens:
  """Right-padded token sequences.

  ids   17 42  5  1  0  0      EOS is a token like any other:
  mask   1  1  1  1  0  0      its mask is True.
  """

  ids: jax.Array  # [..., T] int32
  mask: jax.Array  # [..., T] bool, True on real tokens, EOS included


@flax.struct.dataclass
class Prompts(Tokens):
  """Prompts that a chat template rendered, with their plain form."""

  bare: Tokens  # [..., P]; what a judge reads


@flax.struct.dataclass
class Completions:
  """K completions of each of B prompts."""

  prompts: Tokens  # [B, P]
  completions: Tokens  # [B, K, T]


@flax.struct.dataclass
class Labelled:
  """Completions with what is known about them.

  A data set holds it, and a judge makes it of `Completions`. What is unknown
  is None; an objective that needs it says so before anything is compiled.
  """

  completions: Completions
  completion_mask: jax.Array  # [B, K] bool; fewer than K are masked
  preference: jax.Array | None = None  # [B] P(y_1 > y_2 | x), K = 2
  rewards: jax.Array | None = None  # [B, K]
  reference_log_prob: jax.Array | None = None  # [B, K] log pi_ref(y | x)
  # [B, K, K] P(y_i > y_k | x) with y_i shown first, of judges that compare
  matrix: jax.Array | None = None


@flax.struct.dataclass
class Context:
  """What a model keeps of a prompt, read once and used by K completions."""

  start: jax.Array  # [B] int32, the first input of `decode`
  mask: jax.Array  # [B, P] bool, the columns that a completion attends to
  length: jax.Array  # [B] int32, the position of `start`
  keys_values: Any  # the model's own tree


@flax.struct.dataclass
class TrainState:
  """All that a step changes, hence all that a checkpoint holds. Donated."""

  step: jax.Array  # [] int32, updates made
  params: Params
  opt_state: OptState
  ema: Params | None = None  # moving average of params, for nash_ema


@flax.struct.dataclass
class FrozenParams:
  """Read-only, restored from their own paths, never saved, never donated."""

  reference: Params | None = None
  judge: Params | None = None
