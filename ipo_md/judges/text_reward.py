"""A model that scores texts with a tokenizer of its own.

  the policy's tokens -> texts -> the judge's tokens -> rewards
       (a program)      (the host)                  (a program)

So the judge may have another vocabulary than the policy. It is a classifier of
Hugging Face with one label, such as `LlamaForSequenceClassification`, or an
ordinary language model.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from ipo_md import checkpoints
from ipo_md import models
from ipo_md import sampling
from ipo_md.checkpoints import model_folder
from ipo_md.core import identity
from ipo_md.core import model_dir
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.data import chat_template
from ipo_md.judges import declaration
from ipo_md.judges import host
from ipo_md.judges import reading
from ipo_md.judges import samples as samples_lib

_NAME = 'JUDGE_CHECKPOINT_PATH'


@model_dir.may_change('batch_size', 'label')
@identity.reads(
  checkpoint_path=checkpoints.identify, config_path=model_folder.identify
)
@declaration.declare(
  runs_on='host',
  gives=('preference', 'rewards'),
  checkpoint=lambda judge: judge.checkpoint_path,
)
class TextRewardModel:
  """Scores texts by a reward model with its own network and tokenizer.

    P(y_1 > y_2 | x) = sigmoid(r(x, y_1) - r(x, y_2))        (Bradley-Terry)

  The network is that of config.json, in float32 unless `dtype` says otherwise.
  The reward is read at the last token of a text, by the rule of transformers:
  the last one that is not `pad_token_id`. That of a language model is the
  log-likelihood of the text,

    r(x, y) = log p(text of x and y),

  up to a constant of the prompt, which no comparison sees.

  Args:
    checkpoint_path: JUDGE_CHECKPOINT_PATH, a folder of Hugging Face with
      config.json, score.weight and tokenizer.json; or a MODEL_DIR of a
      decoder-only reward model. Without a score.weight if `likelihood`.
    config_path: JUDGE_CONFIG_PATH, the folder with config.json and tokenizer.
      None stands for `checkpoint_path`.
    text: JUDGE_TEXT, the text of a prompt {text} with a completion {first}, in
      which special tokens are tokens. None is the judge's own chat template.
    date: CHAT_DATE, the date that a chat template sees as today's, as
      'YYYY-MM-DD'. None is the real one.
    max_length: JUDGE_MAX_LENGTH, the most tokens of a text. The prompt of a
      longer one is cut at its end.
    batch_size: JUDGE_BATCH_SIZE, the most prompts that are judged at a time.
    dtype: JUDGE_DTYPE, the type of the activations.
    scan: JUDGE_SCAN_LAYERS, whether layers are stacked, which compiles faster.
    label: Text shown by the progress bar. None shows none, for a judge that is
      called at every update.
    likelihood: Whether the model is an ordinary language model, which scores a
      text by its log-likelihood. It compares 2 or more completions.

  Raises:
    ValueError: The folder has no such model or no tokenizer, or a setting is
      invalid.
  """

  def __init__(
    self,
    *,
    checkpoint_path: str,
    text: str | None,
    max_length: int,
    batch_size: int,
    config_path: str | None = None,
    date: str | None = None,
    dtype: str = 'float32',
    scan: bool = False,
    label: str | None = 'judging',
    likelihood: bool = False,
  ):
    path = checkpoint_path if config_path is None else config_path
    folder = model_folder.find(path, _NAME)
    self.checkpoint_path = checkpoint_path
    self._model = models.Model(
      functools.partial(
        model_folder.network,
        path=path,
        **({} if likelihood else {'reward_head': 1}),
        dropout_rate=0.0,
        dtype=dtype,
        scan=scan,
        remat_policy='none',
      )
    )
    if not isinstance(self._model.config, models.DecoderOnlyConfig):
      raise ValueError(
        f'{_NAME} {folder} is a T5, but a judge with a tokenizer of its own '
        'must be a decoder-only model.'
      )
    self._reader = _reader(path, text, max_length, date)
    if likelihood:  # padding at the end may be the EOS that ends a completion
      self._reader = dataclasses.replace(self._reader, pad_id=None)
    _check_size(
      f'{_NAME} {folder}',
      self._reader.vocabulary.vocab_size,
      self._model.config.vocab_size,
    )
    score = _log_likelihood if likelihood else _score
    self._score = jax.jit(functools.partial(score, model=self._model))
    self._likelihood = likelihood
    self._batch_size, self._label = batch_size, label
    self._params = None
    self._said = False

  def __call__(
    self, samples: samples_lib.Samples, pairs: samples_lib.Pairs
  ) -> Iterator[np.ndarray]:
    yield from host.of_rewards(self.rewards(samples), pairs)

  def rewards(self, samples: samples_lib.Samples) -> np.ndarray:
    """Returns rewards [N, K] in nats.

    Raises:
      ValueError: A completion does not fit into JUDGE_MAX_LENGTH, or the
        checkpoint is not one of this model; or, for a likelihood, there is one
        completion, or a prompt would be cut.
    """
    mesh = jax.sharding.get_mesh()
    if self._likelihood and len(samples.texts[0]) < 2:
      raise ValueError(
        f'{_NAME} is a language model that compares the completions of a '
        'prompt, and there is 1: MIXTURE_COEFS has one entry for each.'
      )
    read = [
      self._reader(prompt, row)
      for prompt, row in zip(samples.prompts, samples.texts, strict=True)
    ]
    cut = sum(cut for _, cut in read)
    if self._likelihood and cut:
      raise ValueError(
        f'{cut:,} texts have more than JUDGE_MAX_LENGTH = '
        f'{self._reader.max_length:,} tokens of the judge. Likelihoods of '
        'prompts that are cut cannot be compared: raise JUDGE_MAX_LENGTH.'
      )
    self._say_cut(cut, samples)
    rows = [ids for ids, _ in read]
    params = self._loaded(mesh)
    placed = sharding.batch(mesh)
    size = _whole(min(self._batch_size, len(rows)), placed)
    starts = range(0, len(rows), size)
    shown = starts
    if self._label is not None:
      shown = progress.progress(starts, len(starts), self._label)
    found = []
    for start in shown:
      batch = [rows[i % len(rows)] for i in range(start, start + size)]
      tokens = jax.device_put(reading.grouped(batch), placed)
      found.append(self._score(params, tokens))
    found = multihost_utils.process_allgather(found, tiled=True)
    return np.concatenate(found)[: len(rows)]

  def _loaded(self, mesh: jax.sharding.Mesh) -> types.Params:
    if self._params is None:
      self._params = checkpoints.load_params(
        self.checkpoint_path, self._model, mesh, name=_NAME
      )
    return self._params

  def _say_cut(self, count: int, samples: samples_lib.Samples) -> None:
    """Says once that the prompts of long texts are cut."""
    if count and not self._said:
      self._said = True
      total = len(samples.texts) * len(samples.texts[0])
      progress.say(
        f'{count:,} of {total:,} texts have more than JUDGE_MAX_LENGTH = '
        f'{self._reader.max_length:,} tokens of the judge. Their prompts are '
        'cut at the end.'
      )


def _reader(
  path: str, text: str | None, max_length: int, date: str | None
) -> reading.Reader:
  """Makes what turns texts into the tokens of the model of a folder."""
  vocabulary = model_folder.vocabulary(path=path, name=_NAME)
  if vocabulary is None:
    raise ValueError(
      f'{_NAME} {path} has no tokenizer (tokenizer.json or tokenizer.model), '
      'with which a judge of its own vocabulary reads texts. Copy it into the '
      'folder, or set JUDGE_CONFIG_PATH to a folder with config.json and '
      'tokenizer.'
    )
  make = functools.partial(
    reading.Reader,
    vocabulary=vocabulary,
    max_length=max_length,
    pad_id=model_folder.pad_id(path=path),
  )
  if text is not None:
    return make(
      text=text,
      prefix=model_folder.prompt_prefix(path=path),
      suffix=model_folder.prompt_suffix(path=path),
    )
  folder = model_folder.chat_template(path=path)
  if folder is None:
    raise ValueError(
      f'{_NAME} {path} has no chat template (chat_template.jinja, or '
      'chat_template in tokenizer_config.json), which would write a prompt and '
      "its completion. Set JUDGE_TEXT, such as '{text}\\n{first}'."
    )
  # The template writes BOS itself.
  return make(template=chat_template.read(folder, vocabulary, date=date))


def _check_size(what: str, tokens: int, embeddings: int) -> None:
  if tokens > embeddings:
    raise ValueError(
      f'{what}: the tokenizer has {tokens:,} tokens, but the network only '
      f'{embeddings:,} (vocab_size in config.json). They are of different '
      'models.'
    )


def _whole(size: int, placed: jax.sharding.NamedSharding) -> int:
  """Rounds a number of rows up to one that the batch axes divide."""
  axes = placed.spec[0] if len(placed.spec) else None
  axes = (axes,) if isinstance(axes, str) else axes or ()
  parts = math.prod(placed.mesh.shape[axis] for axis in axes)
  return -(-size // parts) * parts


def _score(
  params: types.Params, completions: types.Completions, *, model: models.Model
) -> jax.Array:
  """Returns the rewards [B, K] at the last token of each text.

  Args:
    params: Parameters of the model.
    completions: Texts, split anywhere (`reading.grouped`).
    model: A decoder-only network with a reward head.
  """
  context = model.encode(params, completions.prompts)
  tokens = completions.completions
  inputs = sampling.reading_inputs(context.start, tokens.ids)
  # The first input is the last token of the prompt.
  mask = jnp.pad(tokens.mask, [(0, 0), (0, 0), (1, 0)], constant_values=True)
  hidden, _, _ = model.decode(params, inputs, context)
  return model.reward(params, hidden, mask)[..., 0]


def _log_likelihood(
  params: types.Params, completions: types.Completions, *, model: models.Model
) -> jax.Array:
  """Returns log p [B, K] of each text after what those of a prompt share.

  Args:
    params: Parameters of the model.
    completions: Texts, split where they begin to differ (`reading.grouped`).
    model: A decoder-only language model.
  """
  log_probs, _ = sampling.log_probs(model, params, completions)
  return jnp.sum(log_probs, axis=-1)
