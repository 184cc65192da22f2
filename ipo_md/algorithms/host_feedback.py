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
    mixture_coefs: 2 weights of the reference.
    sampler: Settings of the sampler.

  Returns:
    The step (state, frozen, prompts, rng) -> (state, metrics). Its metrics are
    those of `step`, those of `objective.sample_metrics`, and judge_seconds.

  Raises:
    ValueError: There are not 2 completions, or the judge is asked for rewards.
  """
  if len(mixture_coefs) != 2:
    raise ValueError(
      f'MIXTURE_COEFS = {tuple(mixture_coefs)}: the judge compares 2 '
      'completions of a prompt.'
    )
  if feedback.truncation_reward is not None:
    raise ValueError(
      'TRUNCATION_REWARD is a reward, but judges on the host give preferences.'
    )
  placed = sharding.batch(jax.sharding.get_mesh())
  sample = jax.jit(
    functools.partial(
      _sample, model=model, mixture_coefs=mixture_coefs, sampler=sampler
    )
  )
  update = partitioning.jit_update(step, state_sharding)
  if example is not None:
    _trace(sample, update, *example)

  def sample_judge_update(state, frozen, prompts, rng):
    sample_rng, rng = jax.random.split(rng)
    label_rng, update_rng = jax.random.split(rng)
    completions, metrics = sample(state.params, frozen, prompts, sample_rng)
    on_host = multihost_utils.process_allgather(completions, tiled=True)
    begin = time.monotonic()
    samples = judges.Samples.of(on_host, dataset)
    preference = judges.preference(feedback.judge, samples, [(0, 1)])[:, 0]
    seconds = time.monotonic() - begin
    preference = jnp.asarray(preference, jnp.float32)
    if feedback.label is not None:
      preference = feedback.label(preference, rng=label_rng)
    labelled = types.Labelled(
      completions=completions,
      completion_mask=jax.device_put(
        np.ones((len(preference), 2), bool), placed
      ),
      preference=jax.device_put(preference, placed),
    )
    state, updated = update(state, frozen, labelled, update_rng)
    return state, updated | metrics | {'judge_seconds': seconds}

  return sample_judge_update


def _trace(
  sample: Any, update: Any, state: Any, frozen: Any, prompts: Any, rng: Any
) -> None:
  """Traces both programs, without a judge."""
  completions, _ = jax.eval_shape(sample, state.params, frozen, prompts, rng)
  rows, k, _ = completions.completions.ids.shape
  labelled = types.Labelled(
    completions=completions,
    completion_mask=jax.eval_shape(lambda: jnp.ones((rows, k), bool)),
    preference=jax.eval_shape(lambda: jnp.ones(rows, jnp.float32)),
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
  """Samples two completions of each prompt, and measures them."""
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
