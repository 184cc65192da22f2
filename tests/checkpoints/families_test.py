"""Every family against transformers: teacher forcing, decoding and export.

testdata/make_families.py computes the expected values.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.checkpoints import hf_config
from ipo_md.core import types
from ipo_md.models import decoder_only
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from tests.checkpoints import families
from tests.checkpoints import networks

EXPECTED = np.load(pathlib.Path(networks.TESTDATA) / 'families.npz')
# The families that are scanned as well; the proofs scan all of them.
SCANNED = ('gemma3', 'smollm3', 'qwen3_moe', 'qwen2_window')


@pytest.fixture(autouse=True, scope='module')
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


def network(family, **overrides):
  fields = hf_config.model_fields(families.CONFIGS[family])
  kind = t5.T5 if families.is_t5(family) else decoder_only.DecoderOnly
  fields |= {'dropout_rate': 0.0, 'scan': False} | overrides
  return model_lib.Model(functools.partial(kind, **fields))


def _inputs(context, completions):
  start = jnp.asarray(context.start)[:, None]
  return jnp.concatenate([start, completions[:, :-1]], axis=1)[:, None]


@functools.partial(jax.jit, static_argnums=0)
def log_probs(model, params, prompts, completions):
  context = model.encode(params, prompts)
  hidden, _, _ = model.decode(params, _inputs(context, completions), context)
  found = jax.nn.log_softmax(model.logits(params, hidden)[:, 0])
  return jnp.take_along_axis(found, completions[..., None], axis=-1)[..., 0]


@functools.partial(jax.jit, static_argnums=0)
def greedy(model, params, prompts):
  """Decodes from the sampling form of weights and context, with a cache."""
  context = model.encode(params, prompts)
  params, form = model.decode_form(params), model.context_form(context)
  cache = model.init_cache(context, 1, families.NEW)

  def step(carry, index):
    token, cache = carry
    hidden, cache, _ = model.decode(
      params, token[:, None, None], form, cache, index
    )
    token = jnp.argmax(model.logits(params, hidden)[:, 0, 0], axis=-1)
    return (token.astype(jnp.int32), cache), token

  start = jnp.asarray(context.start, jnp.int32)
  _, tokens = jax.lax.scan(step, (start, cache), jnp.arange(families.NEW))
  return tokens.T


CASES = [
  pytest.param(
    family,
    scan,
    marks=[pytest.mark.slow]
    if not scan or family in SCANNED
    else [pytest.mark.slow, pytest.mark.proof],
  )
  for family in families.CONFIGS
  for scan in (False, True)
]


@pytest.mark.parametrize(('family', 'scan'), CASES)
def test_log_probs_and_decodes_are_those_of_transformers(
  tmp_path, family, scan
):
  model = network(family, scan=scan)
  params = networks.load(model, families.write(family, tmp_path))
  ids, mask, completions = families.texts()
  prompts = types.Tokens(jnp.array(ids), jnp.array(mask))
  found = log_probs(model, params, prompts, jnp.array(completions))
  np.testing.assert_allclose(
    found, EXPECTED[f'{family}/log_probs'], rtol=0, atol=1e-5
  )
  np.testing.assert_array_equal(
    greedy(model, params, prompts), EXPECTED[f'{family}/greedy']
  )
