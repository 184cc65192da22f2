"""Tests of what a run says about its updates and its samples."""

import contextlib
import math

import pytest

from ipo_md.core import averages
from ipo_md.training import config
from ipo_md.training import logbook


class Silent:
  """A writer and a meter that do nothing."""

  def phase(self, name):
    del name
    return contextlib.nullcontext()

  def report(self, **kwargs):
    return kwargs

  def recompiled(self):
    return []

  def scalars(self, step, values):
    pass

  performance = scalars


class State:
  params = ()


@pytest.mark.parametrize(
  ('metrics', 'said'),
  [
    ({'identical_pairs': 1.0, 'eos_rate': 0.5}, ['TEMPERATURE']),
    ({'identical_pairs': 0.9, 'eos_rate': 0.0}, ['MAX_NEW_TOKENS']),
    ({'identical_pairs': 1.0, 'eos_rate': 0.0}, ['TEMPERATURE', 'EOS_ID']),
    ({'identical_pairs': 0.9, 'eos_rate': 0.1}, []),
    ({'perplexity': 1.0}, []),
  ],
)
def test_samples_that_teach_nothing_are_named_once(metrics, said, capsys):
  log = logbook.Logbook(
    Silent(),
    Silent(),
    State(),
    first=0,
    schedule=config.Schedule(
      train_steps=4, log_period=1, eval_period=0, checkpoint_period=0
    ),
    watch=config.Watch(),
  )
  for step in (1, 2):
    log.add(dict(metrics))
    log.close_window(step)
    log.show(step, {})
  lines = [x for x in capsys.readouterr().out.splitlines() if 'Up to' in x]
  assert len(lines) == len(said)
  for line, name in zip(lines, said, strict=True):
    assert name in line


def update(total, tokens, **others):
  return {
    'loss': averages.Mean(total, tokens),
    'perplexity': averages.Mean(total, tokens, exponential=True),
    'tokens': averages.Sum(tokens),
    **others,
  }


def test_a_window_is_weighted_as_the_loss_is():
  found, tokens = logbook.means(
    [update(12.0, 4, grad_norm=1.0), update(1.0, 1, grad_norm=3.0)], 2, 0
  )
  assert tokens == 5
  assert found == {
    'loss': 13 / 5,
    'perplexity': pytest.approx(math.exp(13 / 5)),
    'grad_norm': 2.0,
  }


def test_a_skipped_update_has_no_weight():
  window = [
    update(12.0, 4, skipped_in_a_row=0),
    update(math.inf, 9, skipped_in_a_row=1),
  ]
  found, tokens = logbook.means(window, 2, 1)
  assert (found['loss'], found['skipped'], tokens) == (3.0, 1, 4)


@pytest.mark.parametrize(
  ('bad', 'named'),
  [
    (update(math.nan, 4), 'loss is nan, perplexity is nan at step 7'),
    (update(4e3, 4), 'perplexity is inf at step 7'),
    (update(0.0, 0), 'loss is nan'),
    (update(1.0, 1, grad_norm=math.inf), 'grad_norm is inf at step 7'),
  ],
)
def test_a_metric_that_is_not_finite_is_named_with_its_step(bad, named):
  with pytest.raises(FloatingPointError, match=named):
    logbook.means([update(1.0, 1), bad], 7, 0)
