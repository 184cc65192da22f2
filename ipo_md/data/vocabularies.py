"""The vocabulary of a run."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from etils import epath
from etils import epy

from ipo_md.core import identity
from ipo_md.core import paths
from ipo_md.core import types
from ipo_md.data import registry

with epy.lazy_imports():
  import seqio
  import tensorflow as tf

  from ipo_md.data import hf_vocabulary


def vocabulary(
  *,
  mixture_or_task_name: str | None,
  vocabulary: types.Vocabulary | None = None,
  module: str | Sequence[str] | None = None,
) -> types.Vocabulary:
  """Returns the vocabulary of a run's prompts.

  Judge templates and the texts of a prompt format are tokenised with it.

  Args:
    mixture_or_task_name: Name of a task or mixture of the run.
    vocabulary: VOCABULARY, the vocabulary of the model. None uses the
      vocabulary of the task.
    module: MIXTURE_OR_TASK_MODULE, imported before the task is looked up.

  Raises:
    ValueError: The module cannot be imported, there is no such task, or its
      vocabulary cannot be read.
  """
  if vocabulary is not None:
    return vocabulary
  task = registry.find(mixture_or_task_name, module=module)
  found = task.output_features['inputs'].vocabulary
  check_readable(found)
  return found


@identity.reads(path=identity.of_file)
def tokenizer_vocabulary(
  *,
  path: str,
  eos_id: types.EosId,
  bos_id: int | None = None,
  prefix_space: bool = True,
  trim_texts: bool = False,
) -> types.Vocabulary:
  """Returns the vocabulary of a Hugging Face tokenizer.json.

    VOCABULARY = @data.tokenizer_vocabulary()
    data.tokenizer_vocabulary.path = %TOKENIZER_PATH

  Args:
    path: TOKENIZER_PATH, the path of tokenizer.json.
    eos_id: EOS_ID, the token at which the model stops. Of several, the first
      ends a text.
    bos_id: BOS_ID, or None.
    prefix_space: Whether the file decides if a space is put before a text, as
      Mistral's does. False puts none, so that the parts of a chat template are
      joined as they are written.
    trim_texts: Whether spaces and line ends are removed at both ends of a text,
      as Llama 3's chat template does. Texts of gin files are left as they are.

  Raises:
    ValueError: The file does not exist, is not a tokenizer, or lacks one of
      the ids.
  """
  return hf_vocabulary.TokenizerVocabulary(
    paths.absolute(path, 'TOKENIZER_PATH'),
    eos_id=types.eos_ids(eos_id)[0],
    bos_id=bos_id,
    prefix_space=prefix_space,
    trim_texts=trim_texts,
  )


@identity.reads(path=identity.of_file)
def sentencepiece_vocabulary(
  *, path: str, extra_ids: int = 0
) -> types.Vocabulary:
  """Returns the vocabulary of a SentencePiece model.

  Args:
    path: Path of the model, such as T5's spiece.model.
    extra_ids: Number of ids after those of the model, 100 for T5.

  Raises:
    ValueError: The model cannot be read.
  """
  found = seqio.SentencePieceVocabulary(
    paths.absolute(path, 'VOCABULARY'), extra_ids=extra_ids
  )
  check_readable(found)
  return found


def byte_vocabulary() -> types.Vocabulary:
  """Returns the vocabulary of ByT5: bytes after padding, EOS and unknown."""
  return seqio.ByteVocabulary()


def differing_token(vocabulary: types.Vocabulary, path: str) -> str:
  """Compares a vocabulary with that of another tokenizer.json.

  The names of special tokens may differ, and one may have ids that the other
  one lacks.

  Args:
    vocabulary: Vocabulary of a run.
    path: Path of the other tokenizer.json, which may be absent.

  Returns:
    A text with the first id that stands for two texts, or '' if there is none
    or the vocabulary is no tokenizer.json.
  """
  if (
    not isinstance(vocabulary, hf_vocabulary.TokenizerVocabulary)
    or vocabulary.path == path
    or not epath.Path(path).exists()
  ):
    return ''
  ours, theirs = map(hf_vocabulary.tokens_of, (vocabulary.path, path))
  for i in sorted(ours.keys() & theirs.keys()):
    if ours[i] != theirs[i]:
      return (
        f'id {i} is {ours[i]!r} in {vocabulary.path} and {theirs[i]!r} there'
      )
  return ''


def with_vocabulary(
  task: seqio.Task, vocabulary: types.Vocabulary
) -> seqio.Task:
  """Returns the task with another vocabulary for inputs and targets.

  The preprocessors of the task must read the vocabulary from their
  `output_features`.
  """
  features = {
    name: dataclasses.replace(feature, vocabulary=vocabulary)
    if name in ('inputs', 'targets')
    else feature
    for name, feature in task.output_features.items()
  }
  return task.replace(output_features=features)


def check_readable(vocabulary: types.Vocabulary) -> None:
  """Raises a ValueError if a SentencePiece model cannot be read."""
  if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return
  try:
    _ = vocabulary.tokenizer  # reads the file
  except (OSError, tf.errors.OpError) as error:
    reason = (str(error).splitlines() or [''])[0]
    raise ValueError(
      f'The {type(vocabulary).__name__} cannot be read ({reason}). Set '
      'VOCABULARY to a copy of it.'
    ) from None
