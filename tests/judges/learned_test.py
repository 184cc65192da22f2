"""Tests of judges on the device: prompts, symmetry, independence of padding."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipo_md.algorithms import judge_training
from ipo_md.core import types
from ipo_md.judges import comparison
from ipo_md.judges import host
from ipo_md.judges import learned
from ipo_md.judges import template as template_lib
from ipo_md.sampling import sequences
from tests.judges import small_judges

pytestmark = pytest.mark.slow

VOCABULARY, EOS = small_judges.VOCABULARY, small_judges.EOS
MODEL, PARAMS = small_judges.MODEL, small_judges.PARAMS
template, pairs = small_judges.template, small_judges.pairs
swapped, game = small_judges.swapped, small_judges.game
with_head = small_judges.with_head

comparator = jax.jit(
  functools.partial(
    comparison.comparator, model=MODEL, template=template(), answers=('1', '2')
  )
)


def test_the_joined_prompt_is_the_tokens_of_its_parts():
  """The joined tokens equal those of Python lists, with one EOS at the end."""
  completions = pairs().completions
  y_1, y_2 = (
    jax.tree.map(lambda x, i=i: x[:, i], completions.completions)
    for i in (0, 1)
  )
  joined = template().join(text=completions.prompts, first=y_1, second=y_2)

  def real(tokens, row):
    ids = np.asarray(tokens.ids[row])[np.asarray(tokens.mask[row])]
    return [int(i) for i in ids if i != EOS]

  for row in range(8):
    expected = [
      *real(completions.prompts, row),
      *VOCABULARY.encode('summary 1'),
      *real(y_1, row),
      *VOCABULARY.encode('summary 2'),
      *real(y_2, row),
      *VOCABULARY.encode('better'),
      EOS,
    ]
    mask = np.asarray(joined.mask[row])
    assert np.asarray(joined.ids[row])[mask].tolist() == expected
    assert mask[: len(expected)].all()


def test_training_and_judging_read_the_same_tokens(monkeypatch):
  """`comparator` and `comparator_log_probs` join the same prompts."""
  seen = []
  original = template_lib.Template.join

  def join(self, **fields):
    out = original(self, **fields)
    seen.append(jax.tree.map(np.asarray, out))
    return out

  monkeypatch.setattr(template_lib.Template, 'join', join)
  bound = {'model': MODEL, 'template': template(), 'answers': ('1', '2')}
  batch = pairs()
  with jax.disable_jit(False):
    comparison.comparator(PARAMS, batch.completions, **bound)
    comparison.comparator_log_probs(
      PARAMS, batch.completions, rng=jax.random.key(0), **bound
    )
  jax.tree.map(np.testing.assert_array_equal, seen[:2], seen[2:])


def test_only_the_text_is_truncated():
  completions = pairs().completions
  y_1 = jax.tree.map(lambda x: x[:, 0], completions.completions)
  room = 74 + 32 + 1 + 1  # widths of text, summary, 'summary' and EOS
  short = template(60, '{text} summary {first}')
  joined = short.join(text=completions.prompts, first=y_1)
  whole = template(room, '{text} summary {first}').join(
    text=completions.prompts, first=y_1
  )
  for row in range(8):
    ids = np.asarray(joined.ids[row])[np.asarray(joined.mask[row])].tolist()
    full = np.asarray(whole.ids[row])[np.asarray(whole.mask[row])].tolist()
    tail = len(full) - full.index(VOCABULARY.encode('summary')[0])
    assert ids[-tail:] == full[-tail:]
    assert ids[:-tail] == full[: len(ids) - tail]
    assert len(ids) == min(60, len(full))


@pytest.mark.parametrize('kind', ['comparator', 'likelihood', 'reward_model'])
def test_swapping_the_pair_gives_one_minus_the_preference(kind):
  judge = {
    'comparator': comparator,
    'likelihood': jax.jit(functools.partial(learned.likelihood, model=MODEL)),
    'reward_model': jax.jit(
      functools.partial(learned.reward_model, model=MODEL)
    ),
  }[kind]
  completions = pairs().completions
  p = judge(PARAMS, completions).preference
  np.testing.assert_allclose(
    judge(PARAMS, swapped(completions)).preference, 1 - p, atol=1e-6
  )
  assert np.std(p) > 0


def test_comparator_averages_probabilities_of_both_orders():
  completions = pairs().completions
  log_probs = comparison.comparator_log_probs(
    PARAMS,
    completions,
    model=MODEL,
    template=template(),
    answers=('1', '2'),
  )
  odds = np.exp(np.asarray(log_probs, np.float64))
  share = odds[..., 0] / odds.sum(-1)
  np.testing.assert_allclose(
    comparator(PARAMS, completions).preference,
    (share[:, 0] + 1 - share[:, 1]) / 2,
    atol=1e-6,
  )


def test_comparator_reads_every_pair_of_k_completions():
  two = pairs().completions
  three = two.replace(
    completions=jax.tree.map(
      lambda x: jnp.concatenate([x, x[::-1, :1]], axis=1), two.completions
    )
  )
  judged = comparator(PARAMS, three)
  assert judged.preference is None
  for i, k in itertools.permutations(range(3), 2):
    pair = three.replace(
      completions=jax.tree.map(
        lambda x, i=i, k=k: x[:, jnp.array([i, k])], three.completions
      )
    )
    np.testing.assert_allclose(
      judged.matrix[:, i, k],
      comparator(PARAMS, pair).matrix[:, 0, 1],
      atol=1e-6,
    )
  np.testing.assert_array_equal(
    np.asarray(judged.matrix)[:, range(3), range(3)], 0.5
  )


@pytest.mark.parametrize('joined', [False, True])
def test_a_reward_does_not_depend_on_padding_or_on_the_other_completions(
  joined,
):
  bound = template(144, '{text} summary {first}') if joined else None
  judge = jax.jit(
    functools.partial(learned.reward_model, model=MODEL, template=bound)
  )
  rewards = judge(PARAMS, pairs().completions).rewards
  wide = judge(PARAMS, pairs(36, 80).completions).rewards
  np.testing.assert_allclose(wide, rewards, atol=1e-5)
  one = pairs().completions.replace(
    completions=jax.tree.map(
      lambda x: x[:, 1:], pairs().completions.completions
    )
  )
  judged = judge(PARAMS, one)
  np.testing.assert_allclose(judged.rewards, rewards[:, 1:], atol=1e-5)
  assert judged.preference is None


def test_likelihood_is_the_summed_log_probability():
  completions = pairs().completions
  log_probs, _ = jax.jit(functools.partial(sequences.log_probs, MODEL))(
    PARAMS, completions
  )
  judge = jax.jit(functools.partial(learned.likelihood, model=MODEL))
  rewards = judge(PARAMS, completions).rewards
  np.testing.assert_allclose(rewards, log_probs.sum(-1), rtol=1e-6)


@pytest.mark.parametrize('kind', ['preference_representation', 'reward_model'])
def test_only_a_representation_learns_a_cycle(kind):
  """Bradley-Terry reaches a loss of log 2 at best on 1 > 2 > 3 > 1."""
  rock = game(np.array([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]]))
  model = with_head(4 if kind == 'preference_representation' else 1)
  optimizer = optax.adam(0.03)
  step = jax.jit(
    functools.partial(
      judge_training.reward_step,
      model=model,
      optimizer=optimizer,
      judge=getattr(learned, kind),
    )
  )
  params = model.init(jax.random.key(0))
  state = types.TrainState(jnp.int32(0), params, optimizer.init(params))
  for n in range(60):
    state, metrics = step(state, types.FrozenParams(), rock, jax.random.key(n))
  if kind == 'preference_representation':
    assert float(metrics['loss']) < 0.05
    assert float(metrics['accuracy']) == 1
  else:
    assert float(metrics['loss']) > np.log(2) - 1e-3
    assert float(metrics['accuracy']) <= 2 / 3 + 1e-6


def test_a_representation_compares_k_completions_at_once():
  model = with_head(6)
  params = model.init(jax.random.key(0))
  two = pairs().completions
  four = two.replace(
    completions=jax.tree.map(
      lambda x: jnp.concatenate([x, x[::-1]], axis=1), two.completions
    )
  )
  judge = jax.jit(
    functools.partial(learned.preference_representation, model=model)
  )
  judged = judge(params, four)
  matrix = np.asarray(judged.matrix)
  np.testing.assert_allclose(matrix + matrix.swapaxes(1, 2), 1, atol=1e-6)
  np.testing.assert_array_equal(np.diagonal(matrix, axis1=1, axis2=2), 0.5)
  scores = np.log(matrix) - np.log1p(-matrix)
  np.testing.assert_allclose(judged.rewards, scores.mean(-1), atol=1e-4)
  assert judged.preference is None
  # A pair gives the same preference as within the four, in either order.
  pair = judge(params, two)
  np.testing.assert_allclose(pair.preference, matrix[:, 0, 1], atol=1e-6)
  np.testing.assert_array_equal(
    judge(params, swapped(two)).preference,
    judge(params, swapped(two)).matrix[:, 0, 1],
  )
  np.testing.assert_allclose(
    judge(params, swapped(two)).preference, 1 - pair.preference, atol=1e-6
  )
  assert np.std(pair.preference) > 1e-3


def test_invalid_heads_and_numbers_of_completions_raise():
  two = pairs().completions
  one = two.replace(
    completions=jax.tree.map(lambda x: x[:, :1], two.completions)
  )
  odd, even = with_head(3), with_head(2)
  judge = learned.preference_representation
  with pytest.raises(ValueError, match='MIXTURE_COEFS'):
    jax.eval_shape(
      functools.partial(judge, model=even), even.abstract_params, one
    )
  with pytest.raises(ValueError, match='not 3 .REWARD_HEAD'):
    jax.eval_shape(
      functools.partial(judge, model=odd), odd.abstract_params, two
    )
  with pytest.raises(ValueError, match='not 2 .REWARD_HEAD'):
    judge = functools.partial(learned.reward_model, model=even)
    jax.eval_shape(judge, even.abstract_params, two)


def test_indifferent_prefers_nothing():
  judged = learned.indifferent(None, pairs().completions)
  assert set(np.asarray(judged.preference)) == {0.5}
  assert not np.asarray(judged.rewards).any()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: template(prompt='{first} {text}'), 'first.*text'),
    (lambda: template(prompt='{text} {other}'), 'other'),
    (lambda: template().token('no such word'), 'single token'),
    (
      lambda: template(20, '{text} summary {first}').join(
        text=pairs().completions.prompts,
        first=jax.tree.map(lambda x: x[:, 0], pairs().completions.completions),
      ),
      'do not fit into a joined length of 20',
    ),
    (
      lambda: comparator(
        PARAMS,
        pairs().completions.replace(
          completions=jax.tree.map(
            lambda x: x[:, :1], pairs().completions.completions
          )
        ),
      ),
      'A comparator compares the K completions of a prompt, and K is 1',
    ),
  ],
)
def test_invalid_prompts_and_completions_raise(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize('reads_head', [False, True])
def test_a_judge_on_the_host_has_the_head_that_it_reads(reads_head):
  bound = with_head(1)
  judge = learned.reward_model if reads_head else learned.likelihood
  on_host = host.LearnedJudge(
    judge=functools.partial(judge, model=bound),
    model=bound,
    checkpoint_path='/judge',
    batch_size=2,
  )
  assert bool(on_host._model.config.reward_head) is reads_head
