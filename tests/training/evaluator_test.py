"""Tests that an evaluation does not depend on how it is batched."""

import functools

import jax
import jax.numpy as jnp
import pytest

from ipo_md.algorithms import supervised
from ipo_md.algorithms import win_rate
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.judges import learned
from ipo_md.sampling import sampler
from ipo_md.training import config
from ipo_md.training import evaluator
from ipo_md.training import watchdog
from tests.training import micro_run

pytestmark = pytest.mark.slow


def measured(metrics, name, batch_size, **frozen):
  model = micro_run.micro()
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  params = model.init(jax.random.key(0))
  # Far from uniform, so that the loss varies between examples.
  params = jax.tree.map(lambda x: 3 * x, params)
  state = types.TrainState(step=jnp.int32(0), params=params, opt_state=None)
  with jax.set_mesh(mesh), watchdog.Watchdog(0) as dog:
    evaluate = evaluator.evaluator(
      config.Evaluation(
        metrics=metrics,
        dataset=lambda: micro_run.dataset(name, 'prompts' in name),
        batch_size=batch_size,
        examples=12,
      ),
      model,
      mesh,
      jax.random.key(1),
      dog,
    )
    return evaluate(state, types.FrozenParams(**frozen))[0]


def test_loss_and_perplexity_are_those_of_all_examples():
  of = functools.partial(
    measured, supervised.supervised_metrics, 'mini_tldr_sft'
  )
  expected = of(12)
  assert {'eval_loss', 'eval_perplexity', 'eval_tokens'} == set(expected)
  for batch_size in (4, 1):
    assert of(batch_size) == pytest.approx(expected, rel=1e-5)


def test_a_win_rate_is_that_of_all_prompts():
  model = micro_run.micro()
  metrics = functools.partial(
    win_rate.win_rate_metrics,
    judge=functools.partial(learned.likelihood, model=model),
    sampler=sampler.Sampler(max_new_tokens=6, eos_id=1, temperature=0.0),
  )
  players = {
    name: model.init(jax.random.key(seed))
    for seed, name in enumerate(('reference', 'judge'), 1)
  }
  of = functools.partial(measured, metrics, 'mini_tldr_prompts', **players)
  assert of(4) == pytest.approx(of(12), rel=1e-4)


def test_a_judge_of_rewards_alone_is_named():
  def scores(params, completions):
    judged = learned.indifferent(params, completions)
    return judged.replace(preference=None)

  model = micro_run.micro()
  metrics = functools.partial(
    win_rate.win_rate_metrics,
    judge=scores,
    sampler=sampler.Sampler(max_new_tokens=6, eos_id=1),
  )
  with pytest.raises(ValueError, match='win_rate needs .*JUDGE fills no `pref'):
    measured(
      metrics,
      'mini_tldr_prompts',
      12,
      reference=model.init(jax.random.key(1)),
    )
