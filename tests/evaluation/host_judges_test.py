"""Checks judges of samples on the host, by completion and by pair."""

import comparison
import jax
import numpy as np
import pytest

from ipo_md.checkpoints import load
from ipo_md.core import sharding
from ipo_md.judges import host
from ipo_md.judges import learned as learned_lib
from ipo_md.judges import samples as samples_lib
from tasks.mini_tldr import truth as truth_lib


@pytest.fixture(scope='module', name='samples')
def samples_fixture():
  rows = comparison.dataset('mini_tldr_pairs', False).rows(
    [(0, n) for n in range(11)]
  )
  return samples_lib.Samples.of(
    rows.completions, comparison.dataset('mini_tldr_pairs', False)
  )


def test_samples_as_text(samples):
  examples = truth_lib.score(samples.prompts[0], samples.texts[0][0])
  assert examples.words == len(samples.texts[0][0].split())
  both = samples_lib.Samples.concatenate([samples, samples])
  swapped = both.take(np.tile([1, 2], (11, 1)))
  assert swapped.texts[3] == [samples.texts[3][1], samples.texts[3][0]]
  np.testing.assert_array_equal(
    swapped.tokens.completions.ids[:, 0], samples.tokens.completions.ids[:, 1]
  )


def test_text_judge_is_the_ground_truth(samples):
  judge = host.TextJudge(truth_lib.preference)
  rows = comparison.dataset('mini_tldr_pairs', False).rows(
    [(0, n) for n in range(11)]
  )
  found = host.preference(judge, samples, [(0, 1), (1, 0)])
  np.testing.assert_array_equal(found[:, 0], rows.preference)
  np.testing.assert_array_equal(found[:, 1], 1 - rows.preference)


def ask(judge, samples, pairs):
  return np.stack(list(judge(samples, pairs)), axis=1)


def by_pairs(params, completions):
  """Judges by likelihood, but returns no rewards."""
  judged = learned_lib.likelihood(params, completions, model=comparison.MODEL)
  return judged.replace(rewards=None)


def test_learned_judges_by_completion_and_by_pair(samples, paths):
  three = samples_lib.Samples.concatenate([samples, samples]).take(
    np.tile([0, 1, 2], (11, 1))
  )
  pairs = [(0, 1), (1, 2), (2, 0)]
  with jax.set_mesh(sharding.make_mesh((1, -1, 1))):
    found = ask(comparison.learned_judge(paths['judge']), three, pairs)
    other = host.LearnedJudge(
      judge=by_pairs,
      model=comparison.MODEL,
      checkpoint_path=paths['judge'],
      batch_size=8,
    )
    other = ask(other, three, pairs)
    chosen = host.best_of(comparison.learned_judge(paths['judge']), three)
  params = load.load_params(
    paths['judge'], comparison.MODEL, sharding.make_mesh((1, -1, 1)), name=''
  )
  judged = jax.jit(by_pairs)(params, samples.tokens)
  np.testing.assert_allclose(found[:, 0, 0], judged.preference, atol=1e-5)
  np.testing.assert_allclose(found[:, 1], 1 - found[:, 0], atol=1e-6)
  np.testing.assert_allclose(found[:, 2], 0.5, atol=1e-6)
  np.testing.assert_allclose(other, found, atol=1e-5)
  np.testing.assert_array_equal(chosen, found[:, 0, 0] < 0.5)
