"""Parameters out of a checkpoint of any format, placed on the mesh."""

from collections.abc import Mapping
from collections.abc import Sequence
import hashlib

import jax
import seqio

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
  vocabulary: seqio.Vocabulary | None = None,
  fresh: Sequence[str] = (),
  rules: Mapping[str, str] | None = None,
) -> types.Params:
  """Reads the parameters of a checkpoint straight onto the mesh.

  Args:
    path: a MODEL_DIR, whose latest checkpoint is taken; MODEL_DIR:best, for
      the one of the highest win rate; MODEL_DIR/checkpoints/N; or a checkpoint
      of T5X or Hugging Face (`models.convert.formats`).
    model: whose parameters they are.
    mesh: of all devices.
    name: of the gin parameter that holds the path, for messages.
    vocabulary: of the run; a checkpoint of ours must have been made with it.
    fresh: names of modules that the checkpoint may lack, such as a reward
      head; they are left out of the result then.
    rules: logical axis -> mesh axis; None: `sharding.RULES`.

  Raises:
    ValueError: there is no checkpoint, or it is damaged, or of another model or
      vocabulary.
  """
  if not path:
    raise ValueError(f'{name} is not set: the path of a checkpoint is needed.')
  kind, directory = locate.detect(path, name)
  if kind == 'orbax' and vocabulary is not None:
    theirs = formats.metadata(directory)
    if theirs.get('vocabulary') not in (None, describe(vocabulary)):
      raise ValueError(
        f'{name} {path} was trained with vocabulary {theirs["vocabulary"]}, '
        f'and this run has {describe(vocabulary)} (MIXTURE_OR_TASK_NAME).'
      )
  abstract = sharding.abstract_params(
    mesh, model.abstract_params, model.logical_axes, rules
  )
  return formats.load_params(
    path, abstract, model.config, name=name, fresh=fresh
  )


def identity(path: str, name: str) -> str:
  """A text that changes when `load_params` would read another checkpoint.

  Args:
    path: as `load_params` takes it.
    name: of the gin parameter that holds the path, for messages.
  """
  if not path:
    raise ValueError(f'{name} is not set: the path of a checkpoint is needed.')
  _, directory = locate.detect(path, name)
  metadata = directory.parent / '_CHECKPOINT_METADATA'  # has the time
  written = metadata.read_text() if metadata.exists() else ''
  return f'{directory} {hashlib.sha256(written.encode()).hexdigest()[:12]}'


def describe(vocabulary: seqio.Vocabulary) -> str:
  """A name that two vocabularies share only if they are the same."""
  content = getattr(vocabulary, 'sp_model', None)
  digest = hashlib.sha256(content).hexdigest()[:12] if content else 'built in'
  return f'{type(vocabulary).__name__}({vocabulary.vocab_size}, {digest})'
