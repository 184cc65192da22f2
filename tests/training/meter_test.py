"""Where time goes, profiles on demand, and the report of a hang."""

import faulthandler
import os
import time

import jax
import jax.numpy as jnp
import pytest

from ipo_md.training import meter as meter_lib
from ipo_md.training import profiler as profiler_lib
from ipo_md.training import watchdog as watchdog_lib


def test_phases_add_up_and_compilation_is_its_own():
  with meter_lib.Meter() as meter:
    for _ in meter.waiting('data', iter_slowly(3)):
      with meter.phase('update'):
        time.sleep(0.02)
    with meter.phase('update'):
      jax.jit(lambda x: x + meter_constant())(jnp.ones(3))
    found = meter.report(updates=3, tokens=240, parameters=10)
    assert 0.03 <= found['seconds_data'] < found['seconds']
    assert found['seconds_compile'] > 0
    parts = sum(v for k, v in found.items() if k.startswith('seconds_'))
    assert parts <= found['seconds']
    assert found['seconds_update'] >= 0.06
    rate = 240 / found['seconds'] / jax.device_count()
    assert found['tokens_per_second_per_device'] == pytest.approx(rate)
    assert 0 < found['goodput'] < 1
    assert 'mfu_at_least' not in found  # no CPU has a known peak
    again = meter.report(updates=1, tokens=1, parameters=1)
  assert 'seconds_data' not in again  # counted once
  assert again['goodput'] < found['goodput']


def iter_slowly(count):
  for i in range(count):
    time.sleep(0.01)
    yield i


def meter_constant() -> float:
  return time.monotonic()  # another program each time: never from the cache


def test_mfu_is_its_formula(monkeypatch):
  kind = jax.local_devices()[0].device_kind
  monkeypatch.setitem(meter_lib.PEAK_FLOPS, kind, 1e6)
  with meter_lib.Meter() as meter:
    with meter.phase('update'):
      time.sleep(0.02)
    found = meter.report(updates=1, tokens=7, parameters=11)
  expected = 6 * 11 * 7 / found['seconds_update'] / (1e6 * jax.device_count())
  assert found['mfu_at_least'] == pytest.approx(expected)


@pytest.mark.parametrize(
  ('kind', 'flops'),
  [('NVIDIA H200', 989.5e12), ('NVIDIA L4', 121e12), ('TPU7x', 1153.5e12)],
)
def test_a_device_has_its_own_peak(kind, flops):
  assert meter_lib.PEAK_FLOPS[kind] == flops


def test_a_program_that_is_compiled_again_is_named():
  def wobbly(x):
    return x * meter_constant()

  program = jax.jit(wobbly)
  with meter_lib.Meter() as meter:
    with meter.phase('update'):
      program(jnp.ones(2))
    assert meter.recompiled() == []
    with meter.phase('update'):
      program(jnp.ones(2))
    with meter.phase('checkpoint'):
      program(jnp.ones(4))
    assert meter.recompiled() == []
    with meter.phase('update'):
      program(jnp.ones(3))
    (again,) = [text for text in meter.recompiled() if 'wobbly' in text]
  assert ' s' in again


def test_profiles_at_a_step_and_on_demand(tmp_path):
  profiler = profiler_lib.Profiler(str(tmp_path), first=2, count=2)
  with profiler:
    for step in range(1, 9):
      profiler.before(step)
      profiler.after(step, jnp.ones(3) * step)
      if step == 5:
        (tmp_path / 'PROFILE').write_text('')
      profiler.look(step)
  profiles = tmp_path / 'profile'
  assert sorted(p.name for p in profiles.iterdir()) == ['2', '6']
  assert len(list(profiles.rglob('*.xplane.pb'))) == 2


def test_a_hang_is_reported_and_ends_the_process(monkeypatch, capfd):
  codes = []
  monkeypatch.setattr(os, '_exit', codes.append)
  monkeypatch.setattr(faulthandler, 'dump_traceback', lambda file: None)
  clock = [100.0]
  monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
  with watchdog_lib.Watchdog(0.2) as watchdog:
    for _ in range(4):
      clock[0] += 0.1
      watchdog.alive('step 7')
      time.sleep(0.1)  # it looks every .05 s
    assert not codes
    clock[0] += 0.3
    while not codes:
      time.sleep(0.05)
  assert set(codes) == {1}
  err = capfd.readouterr().err
  assert 'process 0 of 1: nothing has happened for 0 s' in err
  assert 'after step 7' in err
  with watchdog_lib.Watchdog(0) as watchdog:
    watchdog.alive('nothing')
