"""On-line feedback from a judge that is not on the device (OAIF).

  sample (a program) -> texts -> judge (the host) -> update (a program)

Guo et al., https://arxiv.org/abs/2402.04792: a language model annotates the
policy's own completions. The judge is any of `pairwise`, the update any step
that takes labelled completions: `algorithms.offline_step`.
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
  judge: judges.HostJudge,
  mixture_coefs: Sequence[float],
  max_new_tokens: int,
  eos_id: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  label: Callable[..., jax.Array] | None = None,
  int8_sampling: bool = False,
) -> Callable[..., Any]:
  """A step (state, frozen, prompts, rng) out of one of labelled completions.

  It samples with the keys of `online_step`, whose update it equals where the
  judges do. Answers that are kept make a resumed run the same run.

  Args:
    step: (state, frozen, labelled, rng) -> (state, metrics).
    model: network of policy and reference.
    dataset: of the prompts.
    state_sharding: of the state, which is donated.
    judge: of texts or tokens, on the host.
    mixture_coefs: 2 weights of the reference.
    max_new_tokens: T.
    eos_id: ends a completion.
    temperature: of sampling; the log-ratios stay at temperature 1.
    top_k: of sampling.
    top_p: of sampling.
    label: None, the judge's preference is the label; or `losses.hard_label`,
      `losses.sampled_label`.
    int8_sampling: whether the samples are of kernels rounded to int8.

  Returns:
    The step; metrics are those of `step`, length (tokens without EOS), eos_rate
    and judge_seconds.
  """
  sampling.validate(
    mixture_coefs, temperature=temperature, top_k=top_k, top_p=top_p
  )
  if len(mixture_coefs) != 2:
    raise ValueError(
      f'MIXTURE_COEFS = {tuple(mixture_coefs)}: the judge compares 2 '
      'completions of a prompt.'
    )
  placed = sharding.batch(jax.sharding.get_mesh())
  sample = jax.jit(
    functools.partial(
      _sample,
      model=model,
      mixture_coefs=mixture_coefs,
      max_new_tokens=max_new_tokens,
      eos_id=eos_id,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      int8=int8_sampling,
    )
  )
  update = partitioning.jit_update(step, state_sharding)

  def sample_judge_update(state, frozen, prompts, rng):
    sample_rng, rng = jax.random.split(rng)
    label_rng, update_rng = jax.random.split(rng)
    completions, metrics = sample(state.params, frozen, prompts, sample_rng)
    on_host = multihost_utils.process_allgather(completions, tiled=True)
    begin = time.monotonic()
    samples = judges.Samples.of(on_host, dataset)
    preference = judges.preference(judge, samples, [(0, 1)])[:, 0]
    seconds = time.monotonic() - begin
    preference = jnp.asarray(preference, jnp.float32)
    if label is not None:
      preference = label(preference, rng=label_rng)
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


def _sample(
  params: types.Params,
  frozen: types.FrozenParams,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: models.Model,
  mixture_coefs: Sequence[float],
  eos_id: int,
  **controls: Any,
) -> tuple[types.Completions, dict[str, jax.Array]]:
  """Two completions of each prompt, and what is measured of them."""
  policy = model.policy(params, frozen)
  mixed = any(b > 0 for b in mixture_coefs)
  sampled = sampling.sample(
    model,
    policy,
    frozen.reference if mixed else None,
    (
      model.encode(policy, prompts),
      model.encode(frozen.reference, prompts) if mixed else None,
    ),
    rng,
    mixture_coefs=mixture_coefs,
    eos_id=eos_id,
    **controls,
  )
  tokens = sampled.tokens
  ended = objective.ended_of(tokens, eos_id)
  return types.Completions(prompts=prompts, completions=tokens), {
    'length': jnp.mean(jnp.sum(tokens.mask, axis=-1) - ended),
    'eos_rate': jnp.mean(ended),
  }
