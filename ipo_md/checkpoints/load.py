"""Loads the parameters of a model from a checkpoint of any format."""

from collections.abc import Mapping
from collections.abc import Sequence
import hashlib

import jax

from ipo_md import models
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import locate
from ipo_md.core import sharding
from ipo_md.core import types


def load_params(
  path: str,
  model: models.Model,
  mesh: jax.sharding.Mesh,
  *,
  name: str,
  vocabulary: types.Vocabulary | None = None,
  fresh: Sequence[str] = (),
  rules: Mapping[str, str] | None = None,
) -> types.Params:
  """Reads the parameters of a checkpoint onto a mesh, one array at a time.

    params = checkpoints.load_params(
      '/runs/ipo:best', model, mesh, name='CHECKPOINT_PATH'
    )

  Args:
    path: A MODEL_DIR, whose latest checkpoint is read; MODEL_DIR:best, for the
      checkpoint with the highest win rate; MODEL_DIR/checkpoints/N; or a
      checkpoint of T5X or Hugging Face (see `formats`).
    model: Model of the parameters.
    mesh: Mesh of all devices.
    name: Name of the gin parameter with the path, for error messages.
    vocabulary: Vocabulary of this run. A checkpoint that a run saved must have
      been trained with the same one.
    fresh: Names of modules that the checkpoint may lack, such as a reward
      head. Missing ones are left out of the result.
    rules: Mesh axis of every logical axis; None stands for `sharding.RULES`.

  Raises:
    ValueError: The checkpoint is missing, damaged, or of another model or
      vocabulary.
  """
  if not path:
    raise ValueError(f'{name} is not set. It is the path of a checkpoint.')
  kind, directory = locate.detect(path, name)
  if kind == 'orbax' and vocabulary is not None:
    theirs = formats.metadata(directory)
    if theirs.get('vocabulary') not in (None, describe(vocabulary)):
      raise ValueError(
        f'{name} {path} was trained with vocabulary {theirs["vocabulary"]}, '
        f'but this run has {describe(vocabulary)} (MIXTURE_OR_TASK_NAME).'
      )
  abstract = sharding.abstract_params(
    mesh, model.abstract_params, model.logical_axes, rules
  )
  return formats.read_params(
    path, abstract, model.config, name=name, fresh=fresh
  )


def identity(path: str, name: str) -> str:
  """Returns a string that differs if `load_params` reads another checkpoint.

  Args:
    path: Path of a checkpoint, as for `load_params`.
    name: Name of the gin parameter with the path, for error messages.

  Raises:
    ValueError: There is no checkpoint.
  """
  if not path:
    raise ValueError(f'{name} is not set. It is the path of a checkpoint.')
  _, directory = locate.detect(path, name)
  # Orbax's metadata includes the time of the save.
  metadata = directory.parent / '_CHECKPOINT_METADATA'
  written = metadata.read_text() if metadata.exists() else ''
  return f'{directory} {hashlib.sha256(written.encode()).hexdigest()[:12]}'


def describe(vocabulary: types.Vocabulary) -> str:
  """Returns a name that two vocabularies share only if they are the same.

  describe(vocabulary)  # 'SentencePieceVocabulary(32100, d60acb128cf7)'
  """
  content = getattr(vocabulary, 'sp_model', None)
  digest = hashlib.sha256(content).hexdigest()[:12] if content else 'built in'
  return f'{type(vocabulary).__name__}({vocabulary.vocab_size}, {digest})'
