"""Tests of the sandbox of programs: each of them ends, and leaves nothing."""

import os
import pathlib
import re
import socket
import sys
import tempfile
import time

import pytest

from tasks.lib import sandbox

pytestmark = pytest.mark.usefixtures('needs_a_sandbox')


@pytest.fixture(name='run')
def run_fixture(tmp_path, monkeypatch):
  """Runs a program and looks for processes and files that it has left."""
  mark = 2**24 - os.getpid()  # in the arguments of each of its processes
  monkeypatch.setattr(sandbox, '_FILES', mark)
  folder = tmp_path / 'temporary'
  folder.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(folder))

  def run(program, **options):
    start = time.monotonic()
    outcome = sandbox.run(program, **options)
    assert time.monotonic() - start < 10
    assert not _processes(f'={mark}')
    assert not list(folder.iterdir())
    return outcome

  return run


def _processes(mark: str) -> list[str]:
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      found.append(path.read_text())
    except OSError:  # It has ended.
      continue
  return [command for command in found if mark in command]


@pytest.mark.parametrize(
  'program',
  [
    '',
    'assert 1 + 1 == 2',
    'print("é" * 10**7)',
    'import collections, dataclasses, hashlib, math, re, typing',
    'open("a", "w").write("b")\nassert open("/tmp/a").read() == "b"',
    'from __future__ import annotations\nimport dataclasses\n'
    '@dataclasses.dataclass\nclass A:\n  b: int\nassert A(1) == A(1)',
    'if __name__ == "__main__":\n  input()',
  ],
)
def test_passes(run, program):
  assert run(program) == sandbox.Outcome(passed=True)


@pytest.mark.parametrize(
  ('program', 'reason'),
  [
    ('assert 1 == 2', 'AssertionError'),
    ('x = (', 'SyntaxError'),
    ('1 / 0', 'ZeroDivisionError'),
    ('def f(): f()\nf()', 'RecursionError'),
    ('input()', 'EOFError'),
    ('raise ValueError("long" * 10**6)', 'ValueError: long'),
    # Too much.
    ('x = bytearray(10 * 2**30)', 'MemoryError'),
    ('with open("a", "wb") as f:\n  while True: f.write(bytes(2**20))', 'OSE'),
    (
      'for i in range(99):\n  open(str(i), "wb").write(bytes(2**20))',
      'No space left',
    ),
    ('x = [open("/dev/null") for _ in range(99)]', 'Too many open files'),
    (
      'import threading, time\nfor _ in range(99):\n'
      '  threading.Thread(target=time.sleep, args=[9]).start()',
      "can't start new thread",
    ),
    # An end before the tests are done.
    ('import sys; sys.exit(0)', 'SystemExit: 0'),
    ('raise KeyboardInterrupt', 'KeyboardInterrupt'),
    ('import os; os._exit(0)', 'too early, with exit status 0'),
    ('import os; os.kill(os.getpid(), 9)', 'exit status 137'),
    (
      'import os\nfor i in range(32):\n  try: os.write(i, b"passed")\n'
      '  except OSError: pass\nos._exit(0)',
      'passed',
    ),
    (
      'import atexit, os, sys\nprint("passed")\natexit.register(os._exit, 0)\n'
      'os._exit = lambda status: None\nsys.exit = print\nassert False',
      'AssertionError',
    ),
    # What is outside.
    ('open("/a", "w")', 'Read-only'),
    ('import os; os.remove(os.__file__)', 'Read-only'),
    ('import os; os.setuid(0)', 'Error'),
    ('import os; os.kill(1, 9); os.kill(os.getppid(), 9); assert 0', 'Error'),
    (
      'import ctypes\nassert not ctypes.CDLL(None).unshare(0x10000000)',
      'AssertionError',
    ),
  ],
)
def test_fails(run, program, reason):
  outcome = run(program)
  assert not outcome.passed
  assert reason in outcome.reason
  assert len(outcome.reason) <= 300


@pytest.mark.parametrize(
  'program',
  [
    'while True: pass',
    'import signal\nfor i in {*range(1, 65)} - {9, 19, 32, 33}:\n'
    '  signal.signal(i, signal.SIG_IGN)\nwhile True: pass',
    'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass',
    'import os, time\nwhile True:\n  try: os.fork() or os.setsid()\n'
    '  except OSError: time.sleep(9)',
    'try:\n  while True: pass\nexcept BaseException: pass',
    '10 ** 10 ** 10',
  ],
)
def test_is_ended_in_time(run, program):
  outcome = run(program, seconds=1)
  assert outcome == sandbox.Outcome(False, 'timed out after 1 s')


def test_a_fork_bomb_that_does_not_expect_a_limit_fails(run):
  assert not run('import os\nwhile True: os.fork()').passed


def test_a_daemon_ends_with_the_program(run):
  daemon = (
    'import os, time\n'
    'if not os.fork():\n  os.setsid()\n  if os.fork(): os._exit(0)\n'
    '  time.sleep(60)\n  os._exit(0)\ntime.sleep(0.1)'
  )
  assert run(daemon).passed


def test_files_outside_are_neither_written_nor_read(run, tmp_path, monkeypatch):
  key = tmp_path / '.ssh' / 'id_ed25519'
  key.parent.mkdir()
  key.write_text('secret')
  key.chmod(0o666)
  for mode in ('r', 'a'):
    assert 'Error' in run(f'open({str(key)!r}, {mode!r})').reason
  assert not run(f'open({str(tmp_path / "new")!r}, "w")').passed
  assert key.read_text() == 'secret'
  assert not (tmp_path / 'new').exists()


def test_homes_are_absent_but_for_the_interpreter(run):
  program = f"""
import os, sys
needed = ({sys.base_prefix!r}, sys.executable)
for home in ('/home', '/root', {os.path.expanduser('~')!r}):
  for folder, folders, files in os.walk(home):
    for path in [os.path.join(folder, name) for name in folders + files]:
      assert any(path.startswith(n) or n.startswith(path) for n in needed), path
    folders[:] = [f for f in folders if not folder.startswith(needed)]
"""
  assert run(program) == sandbox.Outcome(passed=True)


def test_the_environment_is_absent(run, monkeypatch):
  monkeypatch.setenv('API_KEY', 'secret')
  assert run("import os; os.environ['API_KEY']").reason == "KeyError: 'API_KEY'"


def test_there_is_no_network(run):
  with socket.create_server(('127.0.0.1', 0)) as server:
    server.settimeout(0.1)
    port = server.getsockname()[1]
    outcome = run(
      f'import socket\nsocket.create_connection(("127.0.0.1", {port}))'
    )
    assert re.match('ConnectionRefusedError|OSError', outcome.reason)
    with pytest.raises(TimeoutError):
      server.accept()


def test_other_processes_are_not_seen(run):
  program = 'import os\nfor i in range(3, 10**5):\n  try: os.kill(i, 0)'
  program += '\n  except ProcessLookupError: continue\n  assert 0, i'
  assert run(program).passed


@pytest.mark.parametrize(
  ('bwrap', 'message'),
  [
    (None, r'apt-get install bubblewrap.*: bwrap is not on PATH\.$'),
    ('echo No permissions to create namespaces >&2; exit 1', 'No permissions'),
    ('exit 0', 'Programs are run only in a sandbox'),
  ],
)
def test_without_a_sandbox_nothing_is_run(
  tmp_path, monkeypatch, bwrap, message
):
  if bwrap is not None:
    (tmp_path / 'bwrap').write_text(f'#!/bin/sh\n{bwrap}\n')
    (tmp_path / 'bwrap').chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path))
  sandbox.check.cache_clear()
  try:
    with pytest.raises(ValueError, match=message) as raised:
      sandbox.run(f'open({str(tmp_path / "ran")!r}, "w")')
    assert '\n' not in str(raised.value)
  finally:
    sandbox.check.cache_clear()
  assert not (tmp_path / 'ran').exists()
