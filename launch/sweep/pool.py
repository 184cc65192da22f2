"""Runs the processes of a sweep, a limited number of them at a time.

A run is done when its folder contains COMPLETED, whatever its exit code. While
it runs, its process holds a lock on LOGS/NAME.lock. If a sweep was killed while
its runs continued, the next sweep therefore waits for them instead of starting
them twice.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import fcntl
import os
import pathlib
import re
import signal
import subprocess
import time
from typing import Any

from ipo_md.core import durations
from launch.sweep import table

_POLL_SECONDS = 0.2
_PROGRESS = re.compile(r'^(step|sampling|judging|tokenis|converting)')
_LAST_LINES = 5


@dataclasses.dataclass
class Job:
  """A run that waits or is active.

  Attributes:
    name: Name of the run.
    kind: Kind of run. Runs of one kind take about the same time.
    command: Function that returns the command line once all needs are done.
    needs: Names of the jobs that come before.
    completed: Function that returns whether the run is done.
    optional: Names of those needs that may fail, if failed runs are left out.
    lock: Open lock file of the run.
    process: Process of the run. An active job without one belongs to an
      earlier sweep.
    began: Time at which it started, in seconds.
    offset: Position in its log at which this attempt begins, in bytes.
    looked: Whether `completed` has been called before the start.
  """

  name: str
  kind: str
  command: Callable[[], Sequence[str]]
  needs: frozenset[str]
  completed: Callable[[], bool]
  optional: frozenset[str] = frozenset()
  lock: Any = None
  process: subprocess.Popen | None = None
  began: float = 0.0
  offset: int = 0
  looked: bool = False


class Pool:
  """Runs jobs, a limited number of them at a time.

  Args:
    at_once: Largest number of active jobs.
    logs: Local folder of the logs and locks.
    root: Folder in which the commands run.
    env: Environment variables to add to those of this process.
    follow: Function from the name of a job that is done to further jobs.
    lose: Function from the name of a job that failed to further jobs. With it,
      failed runs are left out: jobs start without their optional needs, and a
      job fails if another need of it does. None keeps waiting jobs waiting.

  Attributes:
    failed: Name of each failed job -> the end of its log and the reason.
  """

  def __init__(
    self,
    *,
    at_once: int,
    logs: pathlib.Path,
    root: pathlib.Path,
    env: Mapping[str, str],
    follow: Callable[[str], Sequence[Job]],
    lose: Callable[[str], Sequence[Job]] | None = None,
  ):
    self._at_once = at_once
    self._logs = logs
    self._root = root
    self._env = {**os.environ, **env}
    self._follow = follow
    self._lose = lose
    self._waiting: list[Job] = []
    self._active: list[Job] = []
    self._done: list[str] = []
    self.failed: dict[str, str] = {}
    self._took: dict[str, list[float]] = {}
    self._stopped = False
    self._show = table.Table()

  def run(self, jobs: Sequence[Job]) -> bool:
    """Runs jobs and the jobs that follow from them.

    SIGINT, SIGTERM and SIGHUP stop the runs, which save first.

    Returns:
      Whether all jobs are done.
    """
    self._waiting += jobs
    before = {
      number: signal.signal(number, self._stop)
      for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
      with self._show:
        while self._step():
          time.sleep(_POLL_SECONDS)
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)
    return not self._waiting and not self.failed and not self._stopped

  @property
  def stopped(self) -> bool:
    """Whether a signal stopped the pool."""
    return self._stopped

  def is_done(self, name: str) -> bool:
    """Returns whether a job is done."""
    return name in self._done

  @property
  def not_started(self) -> dict[str, list[str]]:
    """Name of each job that did not run -> the needs that are not done."""
    return {
      job.name: sorted(job.needs - set(self._done)) for job in self._waiting
    }

  def _step(self) -> bool:
    """Ends and starts jobs; returns whether there is more to do."""
    for job in [j for j in self._active if not self._running(j)]:
      self._active.remove(job)
      self._end(job)
    if not self._stopped:
      for job in self._ready():
        if not job.looked and job.completed():
          self._waiting.remove(job)
          self._finish(job, 'was done already')
        elif len(self._active) < self._at_once:
          self._waiting.remove(job)
          self._start(job)
        job.looked = True
    self._show.state(self._rows(), self._summary())
    return bool(self._active) or (not self._stopped and bool(self._ready()))

  def _ready(self) -> list[Job]:
    done = set(self._done)
    lost = set(self.failed if self._lose else ())
    return [
      job for job in self._waiting if job.needs <= done | (job.optional & lost)
    ]

  def _running(self, job: Job) -> bool:
    if job.process is None:
      return not _lock(job.lock)  # It belongs to an earlier sweep.
    return job.process.poll() is None

  def _start(self, job: Job) -> None:
    self._active.append(job)
    job.began = time.monotonic()
    path = self._logs / f'{job.name}.log'
    job.offset = path.stat().st_size if path.exists() else 0
    job.lock = (self._logs / f'{job.name}.lock').open('w')
    if not _lock(job.lock):
      self._show.say(f'{job.name} is still running from an earlier sweep')
      return
    try:
      command = job.command()
    except ValueError as error:
      job.lock.close()
      self._active.remove(job)
      self._fail(job, str(error))
      return
    with path.open('ab') as log:
      log.write(f'{subprocess.list2cmdline(command)}\n'.encode())
      log.flush()
      job.process = subprocess.Popen(
        command,
        cwd=self._root,
        env=self._env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=(job.lock.fileno(),),
        start_new_session=True,
      )
    job.lock.close()  # The process holds the lock now.
    self._show.say(f'{job.name} started')

  def _end(self, job: Job) -> None:
    took = time.monotonic() - job.began
    job.lock.close()
    if job.completed():
      self._took.setdefault(job.kind, []).append(took)
      self._finish(job, f'took {durations.clock(took)}')
    elif job.process is None:  # An earlier sweep's run ended incomplete.
      self._waiting.append(job)
    elif self._stopped:
      self._waiting.append(job)
      self._show.say(f'{job.name} stopped')
    else:
      code = job.process.returncode
      why = f'exit code {code}' if code else 'it ended without COMPLETED'
      self._fail(job, why)

  def _finish(self, job: Job, how: str) -> None:
    self._done.append(job.name)
    self._waiting += self._follow(job.name)
    self._show.say(f'{job.name} {how}')

  def _fail(self, job: Job, why: str) -> None:
    lines = _tail(self._logs / f'{job.name}.log', job.offset)
    self.failed[job.name] = '\n'.join([*lines[-_LAST_LINES:], why])
    self._show.say(f'{job.name} failed: {why}')
    if self._lose is None:
      return
    self._waiting += self._lose(job.name)
    for other in list(self._waiting):
      if job.name in other.needs - other.optional and other in self._waiting:
        self._waiting.remove(other)
        self._fail(other, f'it needs {job.name}, which failed')

  def _stop(self, number: int, frame: Any) -> None:
    del number, frame
    if not self._stopped:
      self._show.say('Stopping. The runs save first.')
    self._stopped = True
    for job in self._active:
      if job.process is not None and job.process.poll() is None:
        os.killpg(job.process.pid, signal.SIGTERM)

  def _rows(self) -> list[tuple[str, str, str]]:
    """Returns name, time and last line of progress of each active job."""
    now = time.monotonic()
    rows = []
    for job in self._active:
      lines = _tail(self._logs / f'{job.name}.log', job.offset)
      said = [line for line in lines if _PROGRESS.match(line)]
      rows.append(
        (
          job.name,
          durations.clock(now - job.began),
          said[-1] if said else 'starting',
        )
      )
    return rows

  def _summary(self) -> str:
    total = len(self._done) + len(self._active) + len(self._waiting)
    total += len(self.failed)
    text = f'sweep  {len(self._done)}/{total} runs  {len(self._active)} running'
    if self.failed:
      text += f'  {len(self.failed)} failed'
    left = self._left()
    return text if left is None else f'{text}  left {durations.clock(left)}'

  def _left(self) -> float | None:
    """Returns the seconds left if each run takes as long as its kind does."""
    every = [t for took in self._took.values() for t in took]
    if not every:
      return None
    mean = lambda x: sum(x) / len(x)
    usual = lambda job: mean(self._took.get(job.kind, every))
    now = time.monotonic()
    work = sum(usual(job) for job in self._waiting)
    work += sum(max(0, usual(j) - (now - j.began)) for j in self._active)
    return work / self._at_once


def _lock(file: Any) -> bool:
  """Locks a file; returns False if another process holds the lock."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def _tail(path: pathlib.Path, offset: int) -> list[str]:
  """Returns the last lines of a log, none of them from before `offset`."""
  if not path.exists():
    return []
  with path.open('rb') as file:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(offset, end - 4000))
    text = file.read().decode(errors='replace')
  return [line for line in re.split(r'[\r\n]+', text) if line.strip()]
