"""Steps of a small T5 on random prompts, for several test files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.algorithms import offline as offline_lib
from ipo_md.algorithms import online as online_lib
from ipo_md.core import types
from ipo_md.judges import learned
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.sampling import sampler as sampler_lib

B, P, T, EOS = 8, 6, 5, 1
MODEL = model_lib.Model(
  functools.partial(
    t5.T5,
    vocab_size=16,
    emb_dim=16,
    num_heads=8,
    head_dim=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    mlp_dim=16,
    mlp_activations=('gelu', 'linear'),
    logits_via_embedding=False,
    dropout_rate=0.0,
    scan=False,
  )
)
OPTIMIZER = optax.adam(1e-2, eps=1e-3)


def prompts() -> types.Tokens:
  rng = np.random.default_rng(0)
  mask = np.arange(P) < rng.integers(2, P + 1, (B, 1))
  ids = np.where(mask, rng.integers(2, 16, (B, P)), 0).astype(np.int32)
  return types.Tokens(ids=jnp.array(ids), mask=jnp.array(mask))


def labelled(k: int = 2) -> types.Labelled:
  rng = np.random.default_rng(1)
  mask = np.arange(T) < rng.integers(1, T + 1, (B, k, 1))
  ids = np.where(mask, rng.integers(1, 16, (B, k, T)), 0).astype(np.int32)
  tokens = types.Tokens(ids=jnp.array(ids), mask=jnp.array(mask))
  return types.Labelled(
    completions=types.Completions(prompts=prompts(), completions=tokens),
    completion_mask=jnp.ones((B, k), bool),
    preference=jnp.array(rng.random(B), jnp.float32),
    rewards=jnp.array(rng.normal(size=(B, k)), jnp.float32),
  )


def state_and_frozen() -> tuple[types.TrainState, types.FrozenParams]:
  params, reference, judge = (
    MODEL.init(jax.random.key(seed)) for seed in range(3)
  )
  state = types.TrainState(
    step=jnp.int32(0), params=params, opt_state=OPTIMIZER.init(params)
  )
  return state, types.FrozenParams(reference=reference, judge=judge)


JUDGE = functools.partial(learned.likelihood, model=MODEL)


def online(coefs=(0.125, 0.125), *, judge=JUDGE, feedback=(), sampler=(), **kw):
  arguments = {
    'model': MODEL,
    'optimizer': OPTIMIZER,
    'feedback': objective.Feedback(judge=judge, **dict(feedback)),
    'loss': functools.partial(losses.ipo, tau=0.1),
    'mixture_coefs': coefs,
    'sampler': sampler_lib.Sampler(
      **{'max_new_tokens': T, 'eos_id': EOS} | dict(sampler)
    ),
  }
  return jax.jit(functools.partial(online_lib.online_step, **arguments | kw))


def offline(loss, **changes):
  step = functools.partial(
    offline_lib.offline_step,
    model=MODEL,
    optimizer=OPTIMIZER,
    loss=loss,
    **changes,
  )
  return jax.jit(step)


def assert_same_update(found, expected, state):
  """Compares the parameters after an update, by the size of the update."""
  largest = max(
    float(jnp.abs(a - b).max())
    for a, b in zip(
      jax.tree.leaves(state.params),
      jax.tree.leaves(expected.params),
      strict=True,
    )
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest),
    jax.device_get(found.params),
    jax.device_get(expected.params),
  )
