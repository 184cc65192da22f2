"""Tests of the declarations of judges."""

import functools
import sys

import gin
import jax
import jax.numpy as jnp
import pytest

from ipo_md import judges
from ipo_md.core import types
from ipo_md.evaluation import task_metrics
from ipo_md.games import game
from ipo_md.judges import declaration
from tests.judges import small_judges

DEVICE_JUDGES = {
  'comparator': judges.comparator,
  'indifferent': judges.indifferent,
  'likelihood': judges.likelihood,
  'pairwise_likelihood': judges.pairwise_likelihood,
  'preference_representation': judges.preference_representation,
  'reward_model': judges.reward_model,
}
HOST_JUDGES = {
  judges.CachedJudge: ('preference',),
  judges.HttpJudge: ('preference',),
  judges.LearnedJudge: ('preference', 'rewards'),
  judges.PreferenceFunction: ('preference',),
  judges.RewardFunction: ('preference', 'rewards'),
  judges.TextJudge: ('preference',),
  judges.TextRewardModel: ('preference', 'rewards'),
  judges.WeightedRewards: ('preference', 'rewards'),
}


def bound(name: str) -> tuple[judges.DeviceJudge, types.Params | None]:
  """Returns a judge with a tiny network, and its abstract parameters."""
  judge = DEVICE_JUDGES[name]
  if not judges.declaration_of(judge).has_params:
    return judge, None
  model = small_judges.with_head(
    2 if name == 'preference_representation' else 1
  )
  judge = functools.partial(judge, model=model)
  if name == 'comparator':
    template = small_judges.template(64)
    judge = functools.partial(judge, template=template, answers=('1', '2'))
  if name == 'pairwise_likelihood':
    template = small_judges.template(64, '{text} summary {first}')
    judge = functools.partial(judge, template=template)
  return judge, model.abstract_params


def pair() -> types.Completions:
  tokens = lambda *shape: types.Tokens(
    ids=jnp.full(shape, 5, jnp.int32), mask=jnp.ones(shape, bool)
  )
  return types.Completions(prompts=tokens(3, 6), completions=tokens(3, 2, 4))


@pytest.mark.parametrize('name', DEVICE_JUDGES)
def test_a_device_judge_gives_what_it_declares(name):
  judge, params = bound(name)
  declared = judges.declaration_of(judge)
  assert declared.runs_on == 'device'
  judged = jax.eval_shape(judge, params, pair())
  known = ('preference', 'rewards', 'matrix')
  given = {field for field in known if getattr(judged, field) is not None}
  assert set(declared.gives) == given


def test_what_device_judges_are_trained_on():
  trained_on = {
    name: judges.declaration_of(judge).trained_on
    for name, judge in DEVICE_JUDGES.items()
  }
  assert trained_on == {
    'comparator': 'answers',
    'indifferent': None,
    'likelihood': 'rewards',
    'pairwise_likelihood': 'rewards',
    'preference_representation': 'rewards',
    'reward_model': 'rewards',
  }


@pytest.mark.parametrize('judge', HOST_JUDGES)
def test_host_judges_run_on_the_host(judge):
  declared = judges.declaration_of(judge)
  assert declared.runs_on == 'host'
  assert declared.gives == HOST_JUDGES[judge]
  assert hasattr(judge, 'rewards') == ('rewards' in declared.gives)
  reads_tokens = judge is judges.LearnedJudge
  assert declared.reads == ('tokens' if reads_tokens else 'texts')


def test_what_a_judge_asks_counts_as_its_own():
  function = judges.RewardFunction(len)
  learned = judges.LearnedJudge(
    judge=judges.indifferent, model=None, checkpoint_path='/a', batch_size=1
  )
  of_texts = judges.WeightedRewards(
    judges={'f': function, 'g': function}, weights={'f': 1, 'g': 2}
  )
  of_tokens = judges.WeightedRewards(
    judges={'f': of_texts, 'l': learned}, weights={'f': 1, 'l': 2}
  )
  cached = judges.CachedJudge(of_tokens, 'name', None, {})
  for judge in (function, of_texts, lambda samples, pairs: []):
    assert not judges.reads_tokens(judge)
    assert judges.checkpoint_paths(judge) == ()
  for judge in (learned, of_tokens, cached):
    assert judges.reads_tokens(judge)
    assert judges.checkpoint_paths(judge) == ('/a',)
  assert judges.gives(of_tokens) == ('preference', 'rewards')
  assert judges.gives(cached) == ('preference',)
  assert judges.gives(lambda samples, pairs: []) == ('preference',)


@pytest.mark.parametrize(
  ('judge', 'expected'),
  [
    (task_metrics.MetricJudge, {'runs_on': 'host'}),
    (
      task_metrics.MetricJudge(lambda: None, 'gsm8k', 'exact_match'),
      {'runs_on': 'host'},
    ),
    (
      game.matrix_judge,
      {
        'runs_on': 'device',
        'gives': ('preference', 'rewards', 'matrix'),
        'has_params': True,
      },
    ),
  ],
)
def test_judges_of_other_packages_are_declared(judge, expected):
  declared = judges.declaration_of(judge)
  assert declared == declaration.Declaration(**expected)


def test_every_public_judge_is_declared():
  """A judge that is added to `judges` is found here without its name."""
  declared = []
  for name in judges.__all__:
    try:
      judges.declaration_of(getattr(judges, name))
    except ValueError:
      continue
    declared.append(getattr(judges, name))
  assert set(declared) == {*DEVICE_JUDGES.values(), *HOST_JUDGES}


def test_a_declaration_is_found_through_wrappers():
  expected = judges.declaration_of(judges.likelihood)
  partial = functools.partial(
    functools.partial(judges.likelihood, rng=None), model=None
  )

  @functools.wraps(partial)
  def wrapper(*args, **kwargs):
    return partial(*args, **kwargs)

  for judge in (
    partial,
    wrapper,
    jax.jit(judges.likelihood),
    jax.jit(partial),
    functools.partial(jax.jit(wrapper)),
  ):
    assert judges.declaration_of(judge) is expected
  instance = judges.TextJudge(lambda prompt, y_1, y_2: 0.5)
  assert judges.declaration_of(instance).runs_on == 'host'
  method = functools.partial(instance)
  assert judges.declaration_of(method).runs_on == 'host'


@pytest.fixture(name='gin_config')
def gin_config_fixture():
  yield
  gin.clear_config()


def take(device, scoped, host) -> tuple:
  return device, scoped, host


def test_a_declaration_is_found_through_gin(gin_config, monkeypatch):
  monkeypatch.setitem(sys.modules, 'takes_judges', sys.modules[__name__])
  gin.parse_config("""
    from __gin__ import dynamic_registration
    from ipo_md import judges
    import takes_judges

    takes_judges.take.device = @judges.comparator
    takes_judges.take.scoped = @rater/judges.reward_model
    takes_judges.take.host = @judges.TextJudge()
    judges.comparator.answers = ('1', '2')
    judges.TextJudge.preference = @judges.likelihood
  """)
  device, scoped, host = gin.get_configurable(take)()
  assert device is not judges.comparator
  assert judges.declaration_of(device) is judges.declaration_of(
    judges.comparator
  )
  assert judges.declaration_of(scoped) is judges.declaration_of(
    judges.reward_model
  )
  assert judges.declaration_of(host).runs_on == 'host'


def test_a_judge_without_a_declaration_raises():
  def undeclared(params, completions):
    raise NotImplementedError

  for judge in (undeclared, functools.partial(undeclared, None), object()):
    with pytest.raises(ValueError, match='does not declare.*@judges.declare'):
      judges.declaration_of(judge)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'runs_on': 'tpu'}, "'device' or 'host'"),
    ({'gives': ()}, 'non-empty subset'),
    ({'gives': ('scores',)}, 'non-empty subset'),
    ({'trained_on': 'rewards'}, 'has_params=True'),
    ({'trained_on': 'texts', 'has_params': True}, "'rewards', 'answers'"),
    ({'trained_on': 'rewards', 'has_params': True}, 'gives rewards'),
    ({'runs_on': 'host', 'has_params': True}, 'loads its own'),
    ({'runs_on': 'host', 'gives': ('rewards',)}, 'loads its own'),
    ({'runs_on': 'host', 'gives': ('preference', 'matrix')}, 'a matrix'),
    ({'runs_on': 'host', 'reads': 'ids'}, "'tokens' or 'texts'"),
    ({'reads': 'tokens'}, 'for judges on the host'),
    ({'checkpoint': str}, 'for judges on the host'),
    ({'parts': list}, 'for judges on the host'),
  ],
)
def test_contradictory_declarations_raise(changes, message):
  with pytest.raises(ValueError, match=message):
    judges.declare(**{'runs_on': 'device'} | changes)
