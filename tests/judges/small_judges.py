"""A small network, pairs of the embedded task and a game, to test judges on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ipo_md.core import types
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.judges import template as template_lib
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from tasks.mini_tldr import tasks

VOCABULARY = tasks.VOCABULARY
EOS = VOCABULARY.eos_id
PROMPT = '{text} summary 1 {first} summary 2 {second} better'
MODEL = model_lib.Model(
  functools.partial(
    t5.T5,
    vocab_size=320,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=16,
    mlp_activations=('gelu', 'linear'),
    logits_via_embedding=False,
    dropout_rate=0.0,
    scan=False,
    reward_head=True,
  )
)
PARAMS = MODEL.init(jax.random.key(0))


def with_head(outputs: int) -> model_lib.Model:
  """Returns the network with a head of so many outputs."""
  return model_lib.Model(functools.partial(MODEL._network, reward_head=outputs))


def template(length: int = 144, prompt: str = PROMPT) -> template_lib.Template:
  return template_lib.Template(
    vocabulary=VOCABULARY,
    prompt=prompt,
    length=length,
    prompt_format=prompt_format.PromptFormat(suffix=(EOS,)),
  )


@functools.cache
def pairs(width: int = 32, prompt_width: int = 74) -> types.Labelled:
  dataset = dataset_lib.load(
    mixture_or_task_name='mini_tldr_pairs',
    task_feature_lengths={'inputs': prompt_width, 'targets': width},
    split='validation',
    prompt_format=prompt_format.PromptFormat(suffix=(EOS,)),
  )
  rows = dataset.rows([(0, n) for n in range(8)])
  return jax.tree.map(jnp.asarray, rows)


def swapped(completions: types.Completions) -> types.Completions:
  return completions.replace(
    completions=jax.tree.map(lambda x: x[:, ::-1], completions.completions)
  )


def game(winners: np.ndarray) -> types.Labelled:
  """Returns all pairs of three one-token completions.

  Args:
    winners: [3, 3] P(i > k).
  """
  first, second = np.nonzero(~np.eye(3, dtype=bool))
  ids = np.stack([first, second], axis=1)[..., None] + 10
  prompts = np.full((6, 2), 5, np.int32)
  tokens = lambda x: types.Tokens(
    ids=jnp.array(x), mask=jnp.ones(x.shape, bool)
  )
  return types.Labelled(
    completions=types.Completions(
      prompts=tokens(prompts), completions=tokens(ids.astype(np.int32))
    ),
    completion_mask=jnp.ones((6, 2), bool),
    preference=jnp.array(winners[first, second], jnp.float32),
  )
