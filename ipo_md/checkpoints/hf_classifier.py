"""Hugging Face's sequence classifiers with one label, which are reward models.

`LlamaForSequenceClassification` and its relatives are a decoder without the
head of a language model. Their reward is read at the last token that is not
`pad_token_id`:

  score.weight   [1, hidden_size], without a bias
"""

from collections.abc import Mapping
from typing import Any

_SUFFIX = 'ForSequenceClassification'


def kind(config: Mapping[str, Any]) -> str | None:
  """Returns the architecture of a classifier, or None for other models.

    kind({'architectures': ['LlamaForSequenceClassification']})

  Args:
    config: Contents of config.json.
  """
  for name in config.get('architectures') or ():
    if name.endswith(_SUFFIX):
      return name
  return None


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of `Model.config` in which a classifier differs.

  Its network has a reward head and, as nothing reads one, no vocabulary head.

  Args:
    config: Contents of config.json.

  Returns:
    The fields, or none if the model is no classifier.

  Raises:
    ValueError: The classifier is not a reward model.
  """
  name = kind(config)
  if name is None:
    return {}
  if config.get('is_encoder_decoder') or 't5' in config.get('model_type', ''):
    raise ValueError(
      f'{name} is not supported, only classifiers of decoder-only models: '
      'their score.weight is read as a reward.'
    )
  # transformers writes neither for its default of two labels.
  labels = config.get('num_labels', len(config.get('id2label') or (0, 1)))
  if labels != 1:
    raise ValueError(
      f'{name} has {labels} labels (num_labels or id2label), but a reward '
      'model has 1.'
    )
  return {'reward_head': 1, 'logits_via_embedding': True}


def check_policy(config: Mapping[str, Any], folder: str) -> None:
  """Raises a ValueError if a folder has no language model to be a policy."""
  name = kind(config)
  if name is not None:
    raise ValueError(
      f'{folder} is a {name}: a reward model without the head of a language '
      'model, so it cannot be a policy (INITIAL_CHECKPOINT_PATH or '
      'MODEL_CONFIG_PATH). It can judge, as JUDGE_CHECKPOINT_PATH with '
      'gin/judges/hf_reward_model.gin.'
    )
