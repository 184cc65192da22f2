"""Draws completions of held-out prompts and brings them to the host."""

from collections.abc import Callable
import dataclasses
import functools
import math
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np

from ipo_md import checkpoints
from ipo_md import data
from ipo_md import models
from ipo_md import sampling
from ipo_md.core import part_store
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.evaluation import drawn_samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """The held-out prompts of a comparison.

  Attributes:
    dataset: Function that loads a data set of prompts without targets.
    examples: EVAL_EXAMPLES, the number of prompts, counted from the first.
    batch_size: EVAL_BATCH_SIZE, the number of prompts at a time.
  """

  dataset: Callable[[], data.Dataset]
  examples: int
  batch_size: int

  def load(self) -> data.Dataset:
    """Loads the data set.

    Raises:
      ValueError: EVAL_EXAMPLES is 0, or more than the data set has.
    """
    dataset = self.dataset()
    if not 0 < self.examples <= len(dataset):
      raise ValueError(
        f'EVAL_EXAMPLES {self.examples} is not between 1 and the '
        f'{len(dataset)} prompts of the evaluation split.'
      )
    return dataset


def _key(seed: int, name: str) -> jax.Array:
  """Returns a key that depends on the name of the policy alone.

  If policies shared a key, their samples would be dependent, and the win rate
  would not be that of independent samples.
  """
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


@functools.partial(jax.jit, static_argnames=('model', 'sampler', 'k'))
def _sample(
  params: types.Params,
  reference: types.Params,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: models.Model,
  sampler: sampling.Sampler,
  k: int,
) -> tuple[types.Completions, jax.Array, jax.Array]:
  """Samples K completions of each prompt.

  Returns:
    Completions, log pi [B, K], and log pi - log pi_ref [B, K].
  """
  policy = model.policy(params, types.FrozenParams(reference=reference))
  drawn = sampling.complete(
    model,
    policy,
    prompts,
    rng,
    sampler=sampler,
    mixture_coefs=(0.0,) * k,
  )
  completions = types.Completions(prompts=prompts, completions=drawn.tokens)
  ours, theirs = (
    sampling.log_prob(model, p, completions) for p in (policy, reference)
  )
  return completions, ours, ours - theirs


def drawer(
  model: models.Model,
  prompts: Prompts,
  dataset: data.Dataset,
  reference_checkpoint_path: str,
  seed: int,
  parts: part_store.Folder,
) -> Callable[..., drawn_samples.Drawn]:
  """Makes a function that draws the completions of a policy.

  Args:
    model: Network of the policies and of the reference.
    prompts: Held-out prompts.
    dataset: Data set of the prompts, `prompts.load()`.
    reference_checkpoint_path: Checkpoint of the reference in `Drawn.log_ratio`.
    seed: Seed of the samples. Each name has keys of its own.
    parts: Store in which samples are saved and found again.

  Returns:
    draw(name, checkpoint_path, sampler, *, k) -> Drawn.
  """
  mesh = jax.sharding.get_mesh()
  tokens = dataset.prompts(data.first_rows(dataset, prompts.examples))
  reference_name = 'REFERENCE_CHECKPOINT_PATH'

  @functools.cache
  def common():
    data.check_vocabulary(dataset, model.config.vocab_size)
    return {
      'model': repr(model.config),
      'vocabulary': checkpoints.describe(dataset.vocabulary),
      'reference': checkpoints.identity(
        reference_checkpoint_path, reference_name
      ),
      'prompts': [tokens.ids.tolist(), tokens.mask.sum(axis=-1).tolist()],
      'batch_size': prompts.batch_size,
      'seed': seed,
    }

  @functools.cache
  def reference():
    return checkpoints.load_params(
      reference_checkpoint_path,
      model.base,
      mesh,
      name=reference_name,
      vocabulary=dataset.vocabulary,
    )

  def draw(name, path, sampler, *, k):
    place = f'POLICIES[{name!r}]'
    recipe = common() | {
      'name': name,
      'checkpoint': checkpoints.identity(path, place),
      'sampler': dataclasses.asdict(sampler),
      'k': k,
    }
    rows = parts.get('samples', name, recipe)
    if rows is None:
      try:
        params = checkpoints.load_params(
          path, model, mesh, name=place, vocabulary=dataset.vocabulary
        )
      except ValueError as error:
        error.add_note(
          'A policy of another model or vocabulary is compared as text: run '
          'gin/runs/infer.gin with it and give the MODEL_DIR of that run.'
        )
        raise
      rng = _key(seed, name)
      found = []
      for i, batch in _progress(dataset, prompts, mesh, name):
        key = jax.random.fold_in(rng, i)
        out = _sample(
          params, reference(), batch, key, model=model, sampler=sampler, k=k
        )
        found.append(multihost_utils.process_allgather(out, tiled=True))
      whole, log_prob, log_ratio = jax.tree.map(
        lambda *x: np.concatenate(x)[: prompts.examples], *found
      )
      rows = drawn_samples.to_rows(
        whole, log_prob, log_ratio, dataset, sampler.eos_id
      )
      parts.put('samples', name, recipe, rows)
    return drawn_samples.from_rows(
      rows, tokens, dataset, sampler.max_new_tokens
    )

  return draw


def _progress(dataset, prompts, mesh, name):
  """Yields the number and the tokens of each batch, with a progress line."""
  rows = data.in_order(
    dataset,
    batch_size=prompts.batch_size,
    sharding=sharding.batch(mesh),
    limit=prompts.examples,
  )
  count = math.ceil(prompts.examples / prompts.batch_size)
  rows = progress.progress(rows, count, f'sampling {name}')
  return ((i, batch) for i, (batch, _) in enumerate(rows))
