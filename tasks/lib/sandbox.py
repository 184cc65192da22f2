"""Runs a Python program of a model in a sandbox of bubblewrap.

A program gets the standard library of this interpreter and an empty folder in
memory, /tmp. It has no network, no other files (homes, data and checkpoints are
absent), no variables of the environment and no input, and what it prints is
thrown away. It runs as an unprivileged user in namespaces of its own, so it
sees and signals no other process, and whatever it started ends with it.

Limits: time on the clock and of each process, memory of each process, number of
processes and threads, open files, size of each file and of all. Files that are
only in memory count in none of the limits of memory, so a program that means
harm takes at most 8 times 1.5 GiB until its time ends.

Not protected against:

- Faults of the kernel and of bubblewrap. There is no filter of system calls and
  no virtual machine. Keyrings of the kernel, and sockets from a virtual machine
  to its host (AF_VSOCK), are not apart.
- A program that means to deceive its own tests, which run in its interpreter,
  as HumanEval's do. A pass takes a random token that is written after the last
  line, so an early exit, printing, or another `exit` is a failure. But an
  object may equal everything, and a program may look for the token.
- Load. A program may keep up to 8 cores busy until its time ends.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from typing import IO

from tasks.lib import sandboxed

_SECONDS = 5.0
_PROCESSES = 8
_MEMORY = 2**30  # bytes of address space of a process
_FILES = 2**24  # bytes of a file, and of all files of /tmp


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a program ended.

  Attributes:
    passed: Whether it ran to its last line.
    reason: Why not: 'timed out after 5 s', an exception such as 'MemoryError: '
      in the program's own words, or an exit status, 128 + N for signal N.
  """

  passed: bool
  reason: str = ''


def run(program: str, *, seconds: float = _SECONDS) -> Outcome:
  """Runs a program to its last line, or until a limit ends it.

    run('assert 1 + 1 == 2')  # Outcome(passed=True, reason='')

  Args:
    program: Text of the program. It fails if it raises anything.
    seconds: Time that it has on the clock.

  Raises:
    ValueError: The sandbox does not work here. Nothing was run.
  """
  check()
  return _run(program, seconds)


@functools.cache
def check() -> None:
  """Raises a ValueError if the sandbox does not work on this machine."""
  outcome = _run('', 60)
  if not outcome.passed:
    raise ValueError(_message(outcome.reason))


def _run(program: str, seconds: float) -> Outcome:
  token = secrets.token_hex(16)
  with (
    tempfile.TemporaryFile() as stdin,
    tempfile.TemporaryFile() as stdout,
    tempfile.TemporaryFile() as stderr,
    tempfile.TemporaryFile() as info,
  ):
    stdin.write(f'{token}\n{program}'.encode(errors='replace'))
    stdin.seek(0)
    with subprocess.Popen(
      _command(seconds, info.fileno()),
      stdin=stdin,
      stdout=stdout,
      stderr=stderr,
      pass_fds=[info.fileno()],
      env={'PYTHONHASHSEED': '0', 'PYTHONUTF8': '1'},
    ) as process:
      try:
        status = process.wait(seconds)
      except subprocess.TimeoutExpired:
        return Outcome(False, f'timed out after {seconds:g} s')
      finally:
        process.kill()  # and with it, by --die-with-parent, the sandbox
        _await_end(_start_of(info))
    started, _, said = _start_of(stdout).partition('\n')
    if started != 'started':
      raise ValueError(_message(_start_of(stderr).strip().split('\n')[-1]))
  if status == 0 and said == token:
    return Outcome(True)
  return Outcome(False, said or f'ended too early, with exit status {status}')


def _start_of(file: IO[bytes]) -> str:
  file.seek(0)
  return file.read(sandboxed.REASON).decode(errors='replace')


def _await_end(info: str) -> None:
  """Waits for the first process of the sandbox, which ends after all others."""
  found = re.search(r'"child-pid": (\d+)', info)
  if found is None:  # bwrap failed
    return
  try:
    first = os.pidfd_open(int(found[1]))
  except ProcessLookupError:
    return
  select.select([first], [], [], 10)
  os.close(first)


def _command(seconds: float, info: int) -> list[str]:
  """Returns the command of bwrap, which writes its process id to `info`."""
  bwrap = shutil.which('bwrap')
  if bwrap is None:
    raise ValueError(_message('bwrap is not on PATH'))
  limits = {
    'RLIMIT_AS': _MEMORY,
    'RLIMIT_CORE': 0,
    'RLIMIT_CPU': math.ceil(seconds) + 1,
    'RLIMIT_FSIZE': _FILES,
    'RLIMIT_NOFILE': 32,
    'RLIMIT_NPROC': _PROCESSES,
  }
  if os.geteuid() == 0:
    # Root would stay root outside of a user namespace: `sandboxed` leaves it.
    user, roots = [], ('', sandboxed.ROOT)
    for capability in ('CAP_SETUID', 'CAP_SETGID', 'CAP_SYS_CHROOT'):
      user += ['--cap-add', capability]
  else:
    user, roots = ['--unshare-user', '--disable-userns'], ('',)
  python = os.path.realpath(sys.executable)
  # No more than the interpreter needs: its prefix may be somebody's home.
  prefixes = ('', '/usr', sys.base_prefix)
  readable = [f'{p}/{lib}' for p in prefixes for lib in ('lib', 'lib64')]
  readable += ['/etc/ld.so.cache', python]
  # Otherwise bwrap makes folders on the way that only root may enter.
  folders = {str(f) for path in readable for f in pathlib.Path(path).parents}
  files = []
  for root in roots:
    for folder in sorted(folders | {'/dev'}):
      files += ['--dir', root + folder]
    for path in readable:
      files += ['--ro-bind-try', path, root + path]
    files += ['--dev-bind', '/dev/null', f'{root}/dev/null', '--perms', '0777']
    files += ['--size', f'{_FILES}', '--tmpfs', f'{root}/tmp']
  unshared = ('ipc', 'pid', 'net', 'uts', 'cgroup-try')
  return [
    *(bwrap, '--info-fd', f'{info}', '--die-with-parent', '--new-session'),
    *(*user, *(f'--unshare-{name}' for name in unshared)),
    *(*files, '--remount-ro', '/', '--', python, '-BsSP', '-c'),
    pathlib.Path(sandboxed.__file__).read_text(),
    *(f'{name}={number}' for name, number in limits.items()),
  ]


def _message(reason: str) -> str:
  return (
    'Programs are run only in a sandbox, which needs Linux, bubblewrap 0.8 or '
    'newer (apt-get install bubblewrap) and, unless you are root, user '
    f'namespaces: {reason}.'
  )
