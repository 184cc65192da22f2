"""Tests of what a run says about its samples."""

import contextlib

import pytest

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
