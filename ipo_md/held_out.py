"""Completions of held-out prompts by any policy, brought to the host."""

from collections.abc import Callable
import dataclasses
import functools
import math
import zlib

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from ipo_md import batches
from ipo_md import checkpoints
from ipo_md import data
from ipo_md import pairwise
from ipo_md import sampling
from ipo_md import sequences
from ipo_md import sharding
from ipo_md import telemetry
from ipo_md import types
from ipo_md.models import model as model_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """Held-out prompts.

  Attributes:
    dataset: of bare prompts.
    examples: EVAL_EXAMPLES, how many of them, from the first on.
    batch_size: EVAL_BATCH_SIZE.
  """

  dataset: Callable[[], data.Dataset]
  examples: int
  batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """How completions are drawn.

  Attributes:
    max_new_tokens: MAX_NEW_TOKENS.
    eos_id: EOS_ID.
    temperature: TEMPERATURE; 0 takes the likeliest token.
    top_k: TOP_K; 0 keeps all tokens.
    top_p: TOP_P; 1 keeps all tokens.
  """

  max_new_tokens: int
  eos_id: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  @property
  def plain(self) -> 'Sampler':
    """From the policy as it is: KL is over these samples."""
    return dataclasses.replace(self, temperature=1.0, top_k=0, top_p=1.0)


@dataclasses.dataclass(frozen=True)
class Drawn:
  """K completions of each prompt by one policy, on the host."""

  samples: pairwise.Samples
  ended: np.ndarray  # [N, K] has EOS
  log_prob: np.ndarray  # [N, K] log pi(y | x), nats
  log_ratio: np.ndarray  # [N, K] log pi(y | x) - log pi_ref(y | x), nats

  def take(self, columns: np.ndarray) -> 'Drawn':
    """Completion columns[n] of each prompt n."""
    pick = lambda x: np.take_along_axis(x, columns[:, None], axis=1)
    return Drawn(
      samples=self.samples.take(columns[:, None]),
      ended=pick(self.ended),
      log_prob=pick(self.log_prob),
      log_ratio=pick(self.log_ratio),
    )


def _key(seed: int, name: str) -> jax.Array:
  """A key of its own for each name, whatever else is compared.

  With one key for all, two policies would draw dependent samples, and the win
  rate would not be that of independent ones.
  """
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


@functools.partial(jax.jit, static_argnames=('model', 'sampler', 'k'))
def _sample(
  params: types.Params,
  reference: types.Params,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: model_lib.Model,
  sampler: Sampler,
  k: int,
) -> tuple[types.Completions, jax.Array, jax.Array]:
  """Completions, log pi and log pi - log pi_ref of each [B, K]."""
  drawn = sampling.sample(
    model,
    params,
    None,
    (model.encode(params, prompts), None),
    rng,
    mixture_coefs=(0.0,) * k,
    **dataclasses.asdict(sampler),
  )
  completions = types.Completions(prompts=prompts, completions=drawn.tokens)
  theirs, _ = sequences.log_probs(model, reference, completions)
  ours = jnp.sum(drawn.policy_log_probs, axis=-1)
  return completions, ours, ours - jnp.sum(theirs, axis=-1)


def drawer(
  model: model_lib.Model,
  prompts: Prompts,
  reference_checkpoint_path: str,
  mesh: jax.sharding.Mesh,
  seed: int,
) -> Callable[..., Drawn]:
  """Makes draw(name, checkpoint path, sampler, *, k) -> Drawn.

  Args:
    model: network of policies and reference.
    prompts: the held-out prompts.
    reference_checkpoint_path: of the reference in `Drawn.log_ratio`.
    mesh: of all devices.
    seed: of the samples; each name has keys of its own.
  """
  dataset = prompts.dataset()
  if not 0 < prompts.examples <= len(dataset):
    raise ValueError(
      f'EVAL_EXAMPLES {prompts.examples}: the evaluation split has '
      f'{len(dataset)} prompts, and at least one is needed.'
    )
  data.check_vocabulary(dataset, model.config.vocab_size)
  load = functools.partial(
    checkpoints.load_params,
    model=model,
    mesh=mesh,
    vocabulary=dataset.vocabulary,
  )
  reference = load(reference_checkpoint_path, name='REFERENCE_CHECKPOINT_PATH')

  def draw(name, path, sampler, *, k):
    params = load(path, name=f'POLICIES[{name!r}]')
    rows = batches.in_order(
      dataset,
      batch_size=prompts.batch_size,
      sharding=sharding.batch(mesh),
      limit=prompts.examples,
    )
    count = math.ceil(prompts.examples / prompts.batch_size)
    found, rng = [], _key(seed, name)
    rows = telemetry.progress(rows, count, f'sampling {name}')
    for i, (batch, _) in enumerate(rows):
      key = jax.random.fold_in(rng, i)
      out = _sample(
        params, reference, batch, key, model=model, sampler=sampler, k=k
      )
      found.append(multihost_utils.process_allgather(out, tiled=True))
    tokens, log_prob, log_ratio = jax.tree.map(
      lambda *x: np.concatenate(x)[: prompts.examples], *found
    )
    ids, mask = tokens.completions.ids, tokens.completions.mask
    return Drawn(
      samples=pairwise.Samples.of(tokens, dataset.vocabulary),
      ended=np.any(mask & (ids == sampler.eos_id), axis=-1),
      log_prob=log_prob,
      log_ratio=log_ratio,
    )

  return draw
