"""Runs a command on Cloud TPU, through Google's queued resources.

  python launch/tpu.py run NAME --tpu=v5e:4x4 --spot --bucket=gs://BUCKET \\
    -- python -m ipo_md --gin_file=... --gin.MODEL_DIR="'gs://BUCKET/runs/NAME'"

  create  queues slices and waits for them; `run` can then use them many times
  run     queues slices if there are none of this name, installs this commit on
          all workers, runs the command, and follows it to its end. Preempted
          slices are queued again, and the run resumes. At the end, deletes the
          slices if `run` queued them. Repeat the command to follow a run
  stop    sends SIGTERM to the last run, which saves
  delete  deletes the slices

A run is done when its MODEL_DIR/COMPLETED exists (worker.py). BUCKET/code holds
the commits that ran, BUCKET/jobs/NAME logs and states (jobs.py), BUCKET/data
the data sets (TFDS_DATA_DIR), and BUCKET/cache/jax the compiled programs.

--dry_run prints every command and runs none. See launch/README.md.
"""

import argparse
import tempfile
import time

from launch.google_cloud import accelerators
from launch.google_cloud import arguments
from launch.google_cloud import attempts
from launch.google_cloud import cloud
from launch.google_cloud import jobs
from launch.google_cloud import queue_flags
from launch.google_cloud import slices
from launch.google_cloud import worker

# Succeeds where the run has ended already, so that every worker is reached.
_STOP = (
  'if pid=$(cat ipo_md/pid 2> /dev/null); then kill -TERM $pid 2> /dev/null; '
  'fi; true'
)


def create(tpu: slices.Slices, args: argparse.Namespace) -> int:
  """Queues slices and waits until they are active."""
  wanted = queue_flags.new(args)
  if found := tpu.find():
    raise cloud.Failed(f'{tpu.name} is {slices.state_of(found)} already.')
  _ship(tpu.shell, args.bucket)
  tpu.obtain(wanted)
  return 0


def run(tpu: slices.Slices, args: argparse.Namespace) -> int:
  """Runs the command, on new slices if there are none, and follows it.

  Raises:
    cloud.Failed: The command failed for good, or there is nothing to run it on.
      Slices that `run` queued are deleted before the error is raised.
  """
  cloud.check_model_dir(worker.model_dir(args.command), args.command)
  found = tpu.find()
  while slices.state_of(found) == 'DELETING':
    cloud.say(f'{tpu.name} is being deleted. Waiting until it is gone.')
    time.sleep(tpu.poll)
    found = tpu.look()
  if found:
    queue_flags.check_same(args, found)
  needed = found is None and (args.accelerator or not tpu.shell.dry_run)
  if needed and not args.accelerator:
    raise cloud.Failed(f'There are no slices {tpu.name}: give --tpu=v5e:4x4.')
  if needed:
    wanted = queue_flags.new(args)
  if args.accelerator:
    accelerators.check_mesh(args.command, args.accelerator, args.slices)
  commit, archive = _ship(tpu.shell, args.bucket)
  try:
    job = jobs.last(tpu.shell, args.bucket, tpu.name)
  except cloud.Failed as error:
    raise cloud.Failed(
      f'--bucket={args.bucket} cannot be listed. Nothing was created.\n{error}'
    ) from error
  make = lambda folder: jobs.script(
    folder, args.bucket, archive, commit, args.command
  )
  running = attempts.is_running(tpu, job, found, make)
  if needed:
    tpu.obtain(wanted)
  ours = needed or (found and slices.made_by_run(found))
  try:
    done = attempts.until_done(tpu, args, job, running, make)
  except cloud.Failed as error:
    if ours:
      tpu.delete_after(error)
    raise
  except KeyboardInterrupt:
    cloud.say(
      f'\n{tpu.name} keeps running. Repeat the command to follow it; `stop` '
      'ends it, and `delete` gives the slices back.'
    )
    return 130
  if ours:
    try:
      tpu.delete()
    except cloud.Failed as error:  # The run itself has succeeded.
      cloud.say(str(error))
  return 0 if done else 1


def _ship(shell: cloud.Shell, bucket: str) -> tuple[str, str]:
  """Copies this commit into the bucket, which also tests write access.

  Returns:
    The hash of the commit and the path of its archive.

  Raises:
    cloud.Failed: Some changes are not committed, or the bucket cannot be
      written.
  """
  commit = cloud.commit(shell)
  archive = f'{bucket}/code/{commit}.tar.gz'
  with tempfile.NamedTemporaryFile(suffix='.tar.gz') as file:
    git = ('git', '-C', str(cloud.ROOT), 'archive', '--format=tar.gz')
    shell.call(*git, f'--output={file.name}', commit)
    cloud.upload(shell, bucket, file.name, archive)
  return commit, archive


def stop(tpu: slices.Slices, args: argparse.Namespace) -> int:
  """Stops the last run, which saves. The slices remain."""
  job = _last(tpu, args)
  gone = not tpu.shell.dry_run and _gone(tpu)
  job.put('stop.state', 'stop requested\n')
  try:
    if not gone:
      tpu.ssh(_STOP)
  except cloud.Failed as error:
    job.put('stop.state', 'stop failed\n')
    raise cloud.Failed(f'{job.folder} was not stopped.\n{error}') from error
  before, changed = None, time.monotonic()
  while True:
    states = cloud.patiently(job.states, tpu.poll)
    running = [h for h, words in states.items() if words[0] == 'running']
    if not running:
      cloud.say(
        f'{job.folder}: stopped. Repeat the command that ran it to resume it.'
      )
      return 0
    if _gone(tpu):
      cloud.say(f'{job.folder}: nothing is running, as its slices are gone.')
      return 0
    if states != before:
      before, changed = states, time.monotonic()
    if time.monotonic() - changed > attempts.LOST:
      raise cloud.Failed(
        f'{", ".join(sorted(running))} gave no sign of life for '
        f'{attempts.LOST // 60} minutes. To end it for certain: '
        f'{tpu.to_delete}'
      )
    cloud.say(f'Still saving: {", ".join(sorted(running))}')
    time.sleep(tpu.poll)


def _gone(tpu: slices.Slices) -> bool:
  return slices.state_of(tpu.look()) in slices.GONE


def _last(tpu: slices.Slices, args: argparse.Namespace) -> jobs.Job:
  """Returns the last attempt; a dry run, which cannot know, gets the first."""
  job = jobs.last(tpu.shell, args.bucket, tpu.name)
  if job is None and not tpu.shell.dry_run:
    raise cloud.Failed(f'Nothing was run as {tpu.name} ({args.bucket}/jobs).')
  return job or jobs.following(None, tpu.shell, args.bucket, tpu.name)


def delete(tpu: slices.Slices, args: argparse.Namespace) -> int:
  """Deletes the slices."""
  del args
  if tpu.find() or tpu.shell.dry_run:
    tpu.delete()
  else:
    cloud.say(f'There are no slices {tpu.name}.')
  return 0


def _arguments() -> argparse.Namespace:
  parser, add = arguments.parser('python launch/tpu.py', __doc__)
  place = arguments.place('name of the slices and of the run')
  place.add_argument(
    '--poll',
    type=_seconds,
    default=60,
    help='seconds between two looks (default: 60)',
  )
  bucket = arguments.bucket()
  queue = arguments.group()
  queue.add_argument(
    '--queue_for',
    default='24h',
    help='time in the queue before giving up (default: 24h)',
  )
  tier = queue.add_mutually_exclusive_group()
  tier.add_argument(
    '--spot', action='store_true', help='use slices that may be preempted'
  )
  tier.add_argument('--reserved', action='store_true', help='use a reservation')
  command = arguments.command()
  add('create', create, [place, bucket, arguments.shape(required=True), queue])
  shape = arguments.shape(required=False)
  add('run', run, [place, bucket, shape, queue, command])
  add('stop', stop, [place, bucket])
  add('delete', delete, [place])
  return parser.parse_args()


def _seconds(text: str) -> float:
  seconds = float(text)
  if not seconds > 0:
    raise cloud.Failed(f'--poll={seconds:g} must be more than 0.')
  return seconds


def main() -> int:
  args = _arguments()
  tpu = slices.Slices(
    shell=cloud.Shell(args.dry_run),
    name=args.name,
    where=arguments.where(args),
    poll=args.poll,
  )
  try:
    return args.call(tpu, args)
  except cloud.Failed:
    raise
  except Exception:  # Google does not answer, or the answer makes no sense.
    cloud.say(f'If {tpu.name} exists, it costs money until {tpu.to_delete}')
    raise


if __name__ == '__main__':
  cloud.main(main)
