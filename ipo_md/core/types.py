"""The data that the parts of a run exchange.

Axis letters, used in every docstring of the package:
  B prompts, K completions of a prompt, P prompt tokens, T completion tokens,
  V vocabulary, L layers, H heads, D head size, E model size.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol
from typing import cast

import flax.struct
import jax
import numpy as np

Params = Any  # a tree of arrays, as `Model.init` makes it
OptState = Any
# EOS_ID: the id that ends a text; or several, of which the first is written and
# each ends a completion, as generation_config.json has them.
EosId = int | Sequence[int]


def eos_ids(eos_id: EosId) -> tuple[int, ...]:
  """Returns the ids that end a completion; the first is the one written.

    eos_ids(2)          # (2,)
    eos_ids((9, 8, 9))  # (9, 8)

  Raises:
    ValueError: There is none, or one is not a token id.
  """
  ids = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
  whole = all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
  if not ids or not whole:
    raise ValueError(
      f'EOS_ID is {eos_id!r}: it has to be a token id, or several.'
    )
  return tuple(dict.fromkeys(ids))


def as_leaf(array: np.ndarray | jax.ShapeDtypeStruct) -> jax.Array:
  """Returns its argument, typed as a leaf of the classes below.

  On the host their leaves are NumPy arrays, and `jax.ShapeDtypeStruct`s where
  only shapes count. JAX takes them for arrays, but their types differ.
  """
  return cast(jax.Array, array)


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


class Tokens(flax.struct.PyTreeNode):
  """Right-padded token sequences.

  ids   17 42  5  1  0  0      EOS is a token like any other:
  mask   1  1  1  1  0  0      its mask is True.
  """

  ids: jax.Array  # [..., T] int32
  mask: jax.Array  # [..., T] bool, True on real tokens, EOS included


class Prompts(Tokens):
  """Prompts that a chat template rendered, with their plain form."""

  bare: Tokens  # [..., P]; what a judge reads


class Completions(flax.struct.PyTreeNode):
  """K completions of each of B prompts."""

  prompts: Tokens  # [B, P]
  completions: Tokens  # [B, K, T]


class Labelled(flax.struct.PyTreeNode):
  """Completions with what is known about them.

  A data set holds it, and a judge makes it of `Completions`. What is unknown
  is None; an objective that needs it says so before anything is compiled.
  """

  completions: Completions
  completion_mask: jax.Array  # [B, K] bool; fewer than K are masked
  preference: jax.Array | None = None  # [B] P(y_1 > y_2 | x), K = 2
  rewards: jax.Array | None = None  # [B, K]
  reference_log_prob: jax.Array | None = None  # [B, K] log pi_ref(y | x)
  # [B, K] log-probabilities by other players, of online steps
  player_log_probs: Mapping[str, jax.Array] = flax.struct.field(
    default_factory=dict
  )
  # [B, K, K] P(y_i > y_k | x) with y_i shown first, of judges that compare
  matrix: jax.Array | None = None


class Context(flax.struct.PyTreeNode):
  """What a model keeps of a prompt, read once and used by K completions."""

  start: jax.Array  # [B] int32, the first input of `decode`
  mask: jax.Array  # [B, P] bool, the columns that a completion attends to
  length: jax.Array  # [B] int32, the position of `start`
  keys_values: Any  # the model's own tree


class TrainState(flax.struct.PyTreeNode):
  """All that a step changes, hence all that a checkpoint holds. Donated."""

  step: jax.Array  # [] int32, updates made
  params: Params
  opt_state: OptState
  # Players that change, such as a snapshot (`algorithms.Players`)
  players: Mapping[str, Params] = flax.struct.field(default_factory=dict)


class FrozenParams(flax.struct.PyTreeNode):
  """Read-only, restored from their own paths, never saved, never donated."""

  reference: Params | None = None
  judge: Params | None = None
