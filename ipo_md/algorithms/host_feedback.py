"""Online feedback from a judge on the host (OAIF).

  sample (a program) -> texts -> judge (the host) -> update (a program)

Guo et al., https://arxiv.org/abs/2402.04792: a language model annotates the
policy's own completions. The judge is any host judge of `judges`; the update is
any step that takes labelled completions, such as `offline_step`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from ipo_md import data
from ipo_md import judges
from ipo_md import models
from ipo_md import sampling
from ipo_md.algorithms import objective
from ipo_md.core import partitioning
from ipo_md.core import sharding
from ipo_md.core import types


def two_programs(
  step: Callable[..., Any],
  *,
  model: models.Model,
  dataset: data.Dataset,
  state_sharding: Any,
  example: Sequence[Any] | None = None,
  feedback: objective.Feedback,
  mixture_coefs: Sequence[float],
  sampler: sampling.Sampler,
) -> Callable[..., Any]:
  """Turns a step on labelled completions into a step on prompts.

  It samples with the keys of `online_step`, and its update equals that of
  `online_step` where the judges agree. A judge that caches its answers makes a
  resumed run the same run.

  Args:
    step: (state, frozen, labelled, rng) -> (state, metrics).
    model: Network of policy and reference.
    dataset: Data set of the prompts.
    state_sharding: Shardings of the state, which is donated.
    example: Arguments of the result, or their shapes. Both programs are traced
      with them at once, so that their errors come early.
    feedback: A judge on the host, and what is made of its answer.
    mixture_coefs: K weights of the reference, 2 unless the judge gives rewards.
    sampler: Settings of the sampler.

  Returns:
    The step (state, frozen, prompts, rng) -> (state, metrics). Its metrics are
    those of `step`, those of `objective.sample_metrics`, and judge_seconds.

  Raises:
    ValueError: There are not 2 completions or TRUNCATION_REWARD is set, but the
      judge gives no rewards; or the state has players that change, such as
      the moving average of Nash-EMA.
  """
  scores = 'rewards' in judges.gives(feedback.judge)
  if len(mixture_coefs) != 2 and not scores:
    raise ValueError(
      f'MIXTURE_COEFS = {tuple(mixture_coefs)}: the judge compares 2 '
      'completions of a prompt.'
    )
  if feedback.truncation_reward is not None and not scores:
    raise ValueError(
      'TRUNCATION_REWARD is a reward, but JUDGE gives preferences alone.'
    )
  if example is not None and example[0].players:
    raise ValueError(
      f'training.Start.players = {", ".join(sorted(example[0].players))}: a '
      'judge on the host does not go with an algorithm whose players change.'
    )
  placed = sharding.batch(jax.sharding.get_mesh())
  sample = jax.jit(
    functools.partial(
      _sample, model=model, mixture_coefs=mixture_coefs, sampler=sampler
    )
  )
  update = partitioning.jit_update(step, state_sharding)
  if example is not None:
    _trace(sample, update, *example, scores=scores)

  def sample_judge_update(state, frozen, prompts, rng):
    sample_rng, rng = jax.random.split(rng)
    label_rng, update_rng = jax.random.split(rng)
    completions, metrics = sample(state.params, frozen, prompts, sample_rng)
    on_host = multihost_utils.process_allgather(completions, tiled=True)
    begin = time.monotonic()
    samples = judges.Samples.of(on_host, dataset)
    preference, rewards = judges.feedback(feedback.judge, samples)
    seconds = time.monotonic() - begin
    ended = sampling.ended(on_host.completions, sampler.eos_id)
    judged = types.Labelled(
      completions=completions,
      completion_mask=jnp.ones(ended.shape, bool),
      preference=_float32(preference),
      rewards=_float32(rewards),
    )
    judged = feedback.apply(judged, ended, label_rng)
    on_device = lambda x: None if x is None else jax.device_put(x, placed)
    labelled = judged.replace(
      completion_mask=on_device(judged.completion_mask),
      preference=on_device(judged.preference),
      rewards=on_device(judged.rewards),
    )
    state, updated = update(state, frozen, labelled, update_rng)
    return state, updated | metrics | {'judge_seconds': seconds}

  return sample_judge_update


def _float32(values: np.ndarray | None) -> jax.Array | None:
  return None if values is None else jnp.asarray(values, jnp.float32)


def _trace(
  sample: Any,
  update: Any,
  state: Any,
  frozen: Any,
  prompts: Any,
  rng: Any,
  *,
  scores: bool,
) -> None:
  """Traces both programs, without a judge, which gives rewards if `scores`."""
  completions, _ = jax.eval_shape(sample, state.params, frozen, prompts, rng)
  rows, k, _ = completions.completions.ids.shape
  of = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  labelled = types.Labelled(
    completions=completions,
    completion_mask=types.as_leaf(of((rows, k), jnp.bool_)),
    preference=types.as_leaf(of((rows,))) if k == 2 else None,
    rewards=types.as_leaf(of((rows, k))) if scores else None,
  )
  update.trace(state, frozen, labelled, rng)


def _sample(
  params: types.Params,
  frozen: types.FrozenParams,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: models.Model,
  mixture_coefs: Sequence[float],
  sampler: sampling.Sampler,
) -> tuple[types.Completions, objective.Metrics]:
  """Samples K completions of each prompt, and measures them."""
  tokens = sampling.complete(
    model,
    model.policy(params, frozen),
    prompts,
    rng,
    sampler=sampler,
    mixture_coefs=mixture_coefs,
    player=frozen.reference,
  ).tokens
  completions = types.Completions(prompts=prompts, completions=tokens)
  return completions, objective.sample_metrics(tokens, sampler.eos_id)
