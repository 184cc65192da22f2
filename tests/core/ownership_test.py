"""Who owns a folder: another process here, one elsewhere, a dead one."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from ipo_md.core import ownership

_HOLD = """
import sys, time
from ipo_md.core import ownership
with ownership.owned(sys.argv[1]):
  print('owned', flush=True)
  time.sleep(float(sys.argv[2]))
"""


def start(folder, seconds=60) -> subprocess.Popen:
  process = subprocess.Popen(
    [sys.executable, '-c', _HOLD, str(folder), str(seconds)],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  process.first = process.stdout.readline()
  return process


def record_of(folder: pathlib.Path) -> dict:
  return json.loads((folder / ownership.FILE).read_text())


def write(folder: pathlib.Path, **changes) -> None:
  record = ownership._ours() | changes
  (folder / ownership.FILE).write_text(json.dumps(record))


@pytest.fixture(name='quick')
def quick_fixture(monkeypatch):
  monkeypatch.setattr(ownership, 'BEAT_SECONDS', 0.05)
  monkeypatch.setattr(ownership, 'WATCH_SECONDS', 0.5)


def test_a_living_owner_is_named_and_a_dead_one_is_replaced(tmp_path):
  process = start(tmp_path)
  try:
    assert process.first == 'owned\n'
    message = rf'process {process.pid} on .*choose another MODEL_DIR'
    with pytest.raises(ValueError, match=message), ownership.owned(tmp_path):
      pass
    with pytest.raises(ValueError, match=message):
      ownership.check(str(tmp_path))
    assert record_of(tmp_path)['pid'] == process.pid
  finally:
    process.kill()
    process.wait()
  ownership.check(str(tmp_path))
  with ownership.owned(str(tmp_path)):
    assert record_of(tmp_path)['pid'] == os.getpid()
  assert not any(tmp_path.iterdir())


def test_an_owner_that_nobody_has_waited_for_is_dead(tmp_path):
  """A killed child stays in the table of processes until it is asked for."""
  process = start(tmp_path)
  process.kill()
  while ownership._start_of(process.pid) is not None:
    time.sleep(0.01)
  with ownership.owned(str(tmp_path)):
    pass
  process.wait()


def test_an_owner_that_is_suspended_lives(tmp_path):
  process = start(tmp_path)
  process.send_signal(signal.SIGSTOP)
  try:
    with pytest.raises(ValueError, match='lives'):
      ownership.check(str(tmp_path))
  finally:
    process.kill()
    process.wait()


def test_a_pid_that_another_process_has_got_is_no_owner(tmp_path):
  write(tmp_path, start='1')
  with ownership.owned(str(tmp_path)):
    pass


@pytest.mark.parametrize(
  'elsewhere', [{'host': 'other'}, {'system': 'another boot or container'}]
)
def test_an_owner_elsewhere_is_dead_if_it_does_not_beat(
  tmp_path, quick, elsewhere, capsys
):
  write(tmp_path, **elsewhere)
  ownership.check(str(tmp_path))  # which does not wait
  with ownership.owned(str(tmp_path)):
    assert record_of(tmp_path)['pid'] == os.getpid()
  assert 'Watching for 0.5 s' in capsys.readouterr().out


@pytest.mark.parametrize('clock', [0, 2**31])
def test_an_owner_elsewhere_lives_if_it_beats(tmp_path, quick, clock):
  """Whatever its clock says."""
  write(tmp_path, host='other')
  stop = threading.Event()

  def beat():
    n = 0
    while not stop.wait(0.05):
      n += 1
      partial = tmp_path / 'partial'
      partial.write_text(
        json.dumps(ownership._ours() | {'host': 'other', 'beat': n})
      )
      os.utime(partial, (clock, clock))
      partial.replace(tmp_path / ownership.FILE)

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    with (
      pytest.raises(ValueError, match='on other'),
      ownership.owned(str(tmp_path)),
    ):
      pass
  finally:
    stop.set()
    thread.join()


def test_an_owner_that_was_replaced_ends(tmp_path, quick, monkeypatch, capsys):
  ended = threading.Event()

  def leave(code):
    ended.set()
    raise SystemExit(code)

  monkeypatch.setattr(ownership.os, '_exit', leave)
  monkeypatch.setattr(threading, 'excepthook', lambda args: None)
  with ownership.owned(str(tmp_path)):
    write(tmp_path, run='another', host='other')
    assert ended.wait(10)
  assert 'It took the folder over' in capsys.readouterr().err
  assert record_of(tmp_path)['run'] == 'another'  # whose file is left alone


def test_of_runs_that_start_together_one_owns(tmp_path):
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', _HOLD, str(tmp_path), '60'],
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    for _ in range(4)
  ]
  try:
    owners, ended = 0, 0
    while owners + ended < len(processes):
      ended = sum(p.poll() == 1 for p in processes)
      owners = ended == len(processes) - 1
    (owner,) = (p for p in processes if p.poll() is None)
    assert owner.stdout.readline() == 'owned\n'
    assert record_of(tmp_path)['pid'] == owner.pid
  finally:
    for process in processes:
      process.kill()
      process.wait()


def test_a_folder_without_locks_settles(tmp_path, monkeypatch):
  """As a bucket: of two writers the last one owns it."""
  monkeypatch.setattr(ownership, '_SETTLE_SECONDS', 0.5)

  def refuse(*_):
    raise OSError('no locks available')

  monkeypatch.setattr(ownership.fcntl, 'flock', refuse)
  timer = threading.Timer(0.2, lambda: write(tmp_path, run='last'))
  timer.start()
  with (
    pytest.raises(ValueError, match='belongs to a run that lives'),
    ownership.owned(str(tmp_path)),
  ):
    pass
  timer.join()


@pytest.mark.parametrize('content', ['', '{"run": 1', '[]', '{}'])
def test_a_damaged_record_has_no_owner(tmp_path, content):
  (tmp_path / ownership.FILE).write_text(content)
  with ownership.owned(str(tmp_path)):
    pass


def test_the_file_goes_with_the_block_whatever_ends_it(tmp_path):
  with pytest.raises(RuntimeError), ownership.owned(str(tmp_path)):
    raise RuntimeError
  assert not any(tmp_path.iterdir())


def test_the_beat_counts_up(tmp_path, quick):
  with ownership.owned(str(tmp_path)):
    while record_of(tmp_path)['beat'] < 3:
      time.sleep(0.01)
