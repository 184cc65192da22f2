"""Repeats a command on slices until one attempt succeeds."""

import argparse
from collections.abc import Callable
import time

from launch.google_cloud import cloud
from launch.google_cloud import jobs
from launch.google_cloud import queue_flags
from launch.google_cloud import slices
from launch.google_cloud import worker

LOST = 900  # seconds without a sign of life, after which a worker is lost
_BEAT = 90  # seconds in which a live worker reports three times
_SHORT = 600  # seconds; three shorter attempts in a row end the run
_GRACE = 3  # looks in which the other workers end, or a preemption shows

_MakeScript = Callable[[str], str]


def until_done(
  tpu: slices.Slices,
  args: argparse.Namespace,
  job: jobs.Job | None,
  running: bool,
  make: _MakeScript,
) -> bool:
  """Starts attempts until one is done or the user stops one.

  Args:
    tpu: Slices to run on.
    args: Arguments of the command line.
    job: Last attempt, if there was one.
    running: Whether that attempt is still running.
    make: Function from the folder of an attempt to the script of each worker.

  Returns:
    Whether the run is done; False if the user stopped it.

  Raises:
    cloud.Failed: The command failed and would fail again, or three attempts in
      a row were lost or too short.
  """
  lost = short = 0
  workers = slices.workers(tpu.look()) if running else 0
  while True:
    if not running:
      job = jobs.following(job, tpu.shell, args.bucket, tpu.name)
      job, workers = _start(tpu, args, job, make)
    running = False
    begin = time.monotonic()
    how = _follow(tpu, job, workers)
    tpu.shell.did(f'{job.folder}: {how}.')
    if how in ('done', 'stopped'):
      return how == 'done'
    lost = lost + 1 if how == 'lost' else 0
    quick = how != 'preempted' and time.monotonic() - begin < _SHORT
    short = short + 1 if quick else 0
    if 3 in (lost, short):
      raise cloud.Failed(
        f'Three attempts in a row were {"lost" if lost == 3 else "too short"}; '
        f'see {job.folder}.'
      )


def is_running(
  tpu: slices.Slices,
  job: jobs.Job | None,
  found: dict | None,
  make: _MakeScript,
) -> bool:
  """Returns whether the slices are already running this command.

  Args:
    tpu: Slices to look at.
    job: Last attempt, if there was one.
    found: The queued resource, as Google describes it.
    make: Function from the folder of an attempt to the script of each worker.

  Raises:
    cloud.Failed: The slices are running another command.
  """
  if job is None or slices.state_of(found) != 'ACTIVE':
    return False
  look = lambda: cloud.patiently(job.states, tpu.poll)
  states = look()
  said = [words for words in states.values() if words != ['exited', '0']]
  if {words[0] for words in said} - {'requested'} != {'running'}:
    return False
  # The workers may have died together with the VMs that they ran on.
  cloud.say(
    f'{job.folder} says that it is running. Waiting for a sign of life.'
  )
  until = time.monotonic() + _BEAT
  while look() == states:
    if time.monotonic() > until:
      return False
    time.sleep(min(tpu.poll, 5))
  if not jobs.same_command(job.script(), make(job.folder)):
    raise cloud.Failed(
      f'{job.folder} runs another command or commit; `stop` it first.'
    )
  return True


def _ready(tpu: slices.Slices, args: argparse.Namespace) -> int:
  """Waits for the slices, and queues them again if they were preempted.

  Returns:
    The number of their workers; 0 in a dry run.
  """
  resource = tpu.look()
  state = slices.state_of(resource)
  if state in slices.LOST:
    cloud.say(
      f'{tpu.name} is {state} {slices.reason(resource)}: queueing it again.'
    )
    again = queue_flags.again(args, resource)
    tpu.delete()
    tpu.obtain(again, tries=3)
  elif state in slices.GONE and not tpu.shell.dry_run:
    raise cloud.Failed(f'Someone else deleted {tpu.name}.')
  elif state != 'ACTIVE':
    tpu.wait()
  else:
    return slices.workers(resource)
  return slices.workers(tpu.look())


def _start(
  tpu: slices.Slices,
  args: argparse.Namespace,
  job: jobs.Job,
  make: _MakeScript,
) -> tuple[jobs.Job, int]:
  """Starts a job on every worker. The slices may vanish while it does.

  gcloud succeeds even if it reached only some of the workers, or none, so their
  states are counted.

  Returns:
    The job, which is a later one if some workers had started it before others
    vanished, and the number of workers.
  """
  for left in (2, 1, 0):
    workers = _ready(tpu, args)
    script = make(job.folder)
    if tpu.shell.dry_run:
      settings = script.partition('\n\n')[0].partition('\n#')[0]
      cloud.say(f'# start.sh begins with\n{settings}')
    try:
      job.put('start.sh', script)
      copy = f'gcloud storage cp --quiet {job.folder}/start.sh start.sh'
      tpu.ssh(f'{copy} && bash start.sh')
      if (started := _started(tpu, job, workers)) < workers:
        raise cloud.Failed(f'gcloud reached {started} of {workers} workers.')
      tpu.shell.did(f'Started {job.folder}.')
      break
    except cloud.Failed as error:
      if not left:
        raise
      cloud.say(f'Not started; trying again: {error}')
      time.sleep(tpu.poll)
      if cloud.patiently(job.states, tpu.poll):
        job = jobs.following(job, tpu.shell, args.bucket, tpu.name)
  return job, workers


def _started(tpu: slices.Slices, job: jobs.Job, workers: int) -> int:
  """Returns how many workers have a state, at the second look if need be."""
  look = lambda: len(cloud.patiently(job.states, tpu.poll).keys() - {'stop'})
  if (found := look()) >= workers:
    return found
  time.sleep(tpu.poll)
  return look()


def _follow(tpu: slices.Slices, job: jobs.Job, workers: int) -> str:
  """Prints the output of a job until the job ends.

  Args:
    tpu: Slices that the job runs on.
    job: Attempt to follow.
    workers: Number of workers, of which all have to end.

  Returns:
    How it ended: 'done', 'stopped' (by the user), 'to be started again',
    'preempted' or 'lost'.

  Raises:
    cloud.Failed: The command failed and would fail again.
  """
  shown, failing, before, changed = 0, 0, None, time.monotonic()
  while True:
    states = cloud.patiently(job.states, tpu.poll)
    if tpu.shell.dry_run:
      return 'done'
    hosts = {h: words for h, words in states.items() if h != 'stop'}
    shown += _show(tpu, job, hosts, shown)
    codes = {h: int(n) for h, (word, n) in hosts.items() if word == 'exited'}
    over = bool(hosts) and len(codes) == len(hosts) >= workers
    if over and not any(codes.values()):
      return 'done'
    resource = tpu.look()
    gone = slices.state_of(resource) in slices.GONE
    if 'stop' in states and (over or gone):
      return 'stopped'
    if gone:
      return 'preempted'
    failing = failing + 1 if any(codes.values()) else 0
    again = worker.AGAIN in codes.values()
    hasty = over and (again or 'spot' not in resource)
    if failing > (0 if hasty else _GRACE):
      if again:
        return 'stopped' if 'stop' in states else 'to be started again'
      host = min(h for h, code in codes.items() if code)
      raise cloud.Failed(_failure(tpu, job, host, codes[host]))
    if states != before:
      before, changed = states, time.monotonic()
    if time.monotonic() - changed > LOST:
      return 'stopped' if 'stop' in states else 'lost'
    time.sleep(tpu.poll)


def _show(
  tpu: slices.Slices, job: jobs.Job, hosts: dict[str, list[str]], shown: int
) -> int:
  """Prints the new part of process 0's log.

  Args:
    tpu: Slices that the job runs on.
    job: Attempt to read.
    hosts: State of each worker.
    shown: Number of characters that have been printed already.

  Returns:
    The number of characters that were printed now.
  """
  if not hosts:
    return 0
  read = lambda: job.log(jobs.lead(hosts))
  new = cloud.patiently(read, tpu.poll)[shown:]
  print(new, end='', flush=True)
  return len(new)


def _failure(tpu: slices.Slices, job: jobs.Job, host: str, code: int) -> str:
  """Returns the error message for a worker, with the end of its log."""
  log = cloud.patiently(lambda: job.log(host), tpu.poll)
  last = '\n'.join(log.splitlines()[-20:])
  return (
    f'{host} failed with exit code {code} ({job.folder}/{host}.log):\n{last}'
  )
