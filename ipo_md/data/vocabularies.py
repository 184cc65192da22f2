"""The vocabulary of a run."""

import dataclasses

import seqio
import tensorflow as tf

from ipo_md.data import examples as examples_lib


def with_vocabulary(
  task: seqio.Task, vocabulary: seqio.Vocabulary
) -> seqio.Task:
  """The task with another vocabulary, which its preprocessors have to heed."""
  features = {
    name: dataclasses.replace(feature, vocabulary=vocabulary)
    if name in ('inputs', 'targets')
    else feature
    for name, feature in task.output_features.items()
  }
  return task.replace(output_features=features)


def check_readable(vocabulary: seqio.Vocabulary):
  if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return
  try:
    _ = vocabulary.tokenizer  # reads the file
  except (OSError, tf.errors.OpError) as error:
    reason = (str(error).splitlines() or [''])[0]
    raise ValueError(
      f'The {type(vocabulary).__name__} cannot be read ({reason}); VOCABULARY '
      'may name a copy of it.'
    ) from None


def vocabulary(
  *,
  mixture_or_task_name: str,
  vocabulary: seqio.Vocabulary | None = None,
) -> seqio.Vocabulary:
  """What a run's prompts are made of, for judges' templates and closings.

  Args:
    mixture_or_task_name: a task of the run.
    vocabulary: VOCABULARY, the model's; None: the task's own.
  """
  if vocabulary is not None:
    return vocabulary
  features = examples_lib.find(mixture_or_task_name).output_features
  return features['inputs'].vocabulary
