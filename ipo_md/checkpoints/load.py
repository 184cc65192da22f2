"""Loads the parameters of a model from a checkpoint of any format."""

from collections.abc import Mapping
from collections.abc import Sequence
import hashlib

import jax

from ipo_md import data
from ipo_md import models
from ipo_md.checkpoints import checksums
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import gguf_folder
from ipo_md.checkpoints import locate
from ipo_md.core import identity as identity_lib
from ipo_md.core import sharding
from ipo_md.core import types

# Files of a run's checkpoint that tell two of them apart.
_SAVED = frozenset(('_CHECKPOINT_METADATA', checksums.FILE))
_HUGGING_FACE = ('.json', '.safetensors', '.model')


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
      been trained with the same one, and the tokenizer.json of a Hugging Face
      folder or of a GGUF file must have the same tokens.
    fresh: Names of modules that the checkpoint may lack, such as a reward
      head. Missing ones are left out of the result.
    rules: Mesh axis of every logical axis; None stands for `sharding.RULES`.

  Raises:
    ValueError: The checkpoint is missing, damaged, or of another model or
      vocabulary.
  """
  kind, directory = locate.detect(path, name)
  if kind == 'orbax' and vocabulary is not None:
    theirs = formats.metadata(directory)
    if theirs.get('vocabulary') not in (None, describe(vocabulary)):
      raise ValueError(
        f'{name} {path} was trained with vocabulary {theirs["vocabulary"]}, '
        f'but this run has {describe(vocabulary)} (MIXTURE_OR_TASK_NAME).'
      )
  if kind in ('hf', 'gguf') and vocabulary is not None:
    folder = directory if kind == 'hf' else gguf_folder.unpacked(directory)
    apart = data.differing_token(vocabulary, str(folder / 'tokenizer.json'))
    if apart:
      raise ValueError(
        f'{name} {path} has another tokenizer than this run: {apart}. Policy, '
        'reference and judge have to share one (VOCABULARY); a judge with its '
        'own is read by gin/judges/hf_likelihood.gin or hf_reward_model.gin.'
      )
  abstract = sharding.abstract_params(
    mesh, model.abstract_params, model.logical_axes, rules
  )
  return formats.read_params(
    path, abstract, model.config, name=name, fresh=fresh
  )


def identify(path: str, name: str) -> identity_lib.Identity | None:
  """Identifies the checkpoint that `load_params` reads, in any format.

  What a checkpoint of a run contains is told by its checksums and by the
  metadata of its save. Of other formats the names, sizes and contents of the
  files are compared, cheaply if they are large (see `core.identity`).

  Args:
    path: Path of a checkpoint, as for `load_params`.
    name: Name of the gin parameter with the path, for error messages.

  Returns:
    The identity, or None if there is no checkpoint.
  """
  try:
    kind, directory = locate.detect(path, name)
  except ValueError:  # whatever reads it will say why
    return None
  whole = directory.parent if kind in ('orbax', 't5x_orbax') else directory
  counts = lambda file: True
  if kind == 'gguf':
    whole, counts = directory.parent, directory.name.__eq__
  elif kind == 'hf':
    counts = lambda file: '/' not in file and file.endswith(_HUGGING_FACE)
  elif any((whole / file).exists() for file in _SAVED):
    counts = _SAVED.__contains__
  digest = identity_lib.of_files(whole, counts)
  if kind not in ('hf', 'gguf'):
    digest = f'{whole.name}-{digest}'  # the number of the step
  return identity_lib.Identity(path=str(directory), digest=digest)


def identify_all(
  paths: Mapping[str, str | None],
) -> dict[str, identity_lib.Identity]:
  """Identifies checkpoints by name; leaves out those that are not there.

  Args:
    paths: Name of the gin parameter -> path of a checkpoint, or None.
  """
  found = {name: identify(path, name) for name, path in paths.items() if path}
  return {name: value for name, value in found.items() if value is not None}


def identity(path: str, name: str) -> str:
  """Returns a string that differs if `load_params` reads another checkpoint.

  Args:
    path: Path of a checkpoint, as for `load_params`.
    name: Name of the gin parameter with the path, for error messages.

  Raises:
    ValueError: There is no checkpoint.
  """
  found = identify(path, name)
  if found is None:
    locate.detect(path, name)  # raises what is wrong
    raise ValueError(f'{name} {path} disappeared while it was read.')
  return f'{found.path} {found.digest}'


def describe(vocabulary: types.Vocabulary) -> str:
  """Returns a name that two vocabularies share only if they are the same.

  describe(vocabulary)  # 'SentencePieceVocabulary(32100, d60acb128cf7)'
  """
  content = getattr(vocabulary, 'sp_model', None)
  digest = hashlib.sha256(content).hexdigest()[:12] if content else 'built in'
  return f'{type(vocabulary).__name__}({vocabulary.vocab_size}, {digest})'
