"""Runs a command on Cloud TPU, through Google's queued resources.

  python launch/tpu.py run NAME --tpu=v5e:4x4 --spot --bucket=gs://BUCKET \\
    -- python -m ipo_md --gin_file=... --gin.MODEL_DIR="'gs://BUCKET/runs/NAME'"

  create  queues slices and waits for them; `run` then uses them again and again
  run     queues slices if there are none of this name, installs this commit on
          all workers, runs the command, and follows it to its end: preempted
          slices are queued again, and the run goes on. Deletes the slices if
          `run` queued them. The same command again follows what is running
  status  the slices, and the last run on each worker
  logs    what the last run printed
  stop    SIGTERM to the last run, which saves
  delete  the slices

A run is done when its MODEL_DIR/COMPLETED is there (worker.py). What ran and
what it printed is in BUCKET/code and BUCKET/jobs/NAME (jobs.py).
Compiled programs are shared in BUCKET/cache/jax; TFDS_DATA_DIR is BUCKET/data.

--dry_run prints every command and runs none. launch/README.md says the rest.
"""

import argparse
import tempfile
import time

from launch.google_cloud import attempts
from launch.google_cloud import cloud
from launch.google_cloud import jobs
from launch.google_cloud import slices

# What has ended on one worker is no reason not to end it on the others.
_STOP = (
  'if pid=$(cat ipo_md/pid 2> /dev/null); then kill -TERM $pid 2> /dev/null; '
  'fi; true'
)


def create(tpu: slices.Slices, args: argparse.Namespace) -> int:
  wanted = slices.flags(args)
  if found := tpu.find():
    raise cloud.Failed(f'{tpu.name} is {slices.state_of(found)} already.')
  cloud.check_offered(tpu.shell, tpu.where, cloud.accelerator_type(args.tpu))
  _ship(tpu.shell, args.bucket)
  tpu.obtain(wanted)
  return 0


def run(tpu: slices.Slices, args: argparse.Namespace) -> int:
  """Queues if need be, runs, follows; deletes what it queued.

  Raises:
    cloud.Failed: the command failed for good, or there is nothing to run it on.
      Slices that `run` queued are deleted then.
  """
  found = tpu.find()
  while slices.state_of(found) == 'DELETING':
    cloud.say(f'{tpu.name} is being deleted: waiting for its end.')
    time.sleep(tpu.poll)
    found = tpu.look()
  if found:
    slices.check_same(args, found)
  needed = found is None and (args.tpu or not tpu.shell.dry_run)
  if needed and not args.tpu:
    raise cloud.Failed(f'There are no slices {tpu.name}: give --tpu=v5e:4x4.')
  if needed:
    wanted = slices.flags(args)
    cloud.check_offered(tpu.shell, tpu.where, cloud.accelerator_type(args.tpu))
  if args.tpu:
    accelerator = cloud.accelerator_type(args.tpu)
    cloud.check_mesh(args.command, accelerator, args.slices)
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
      f'\n{tpu.name} goes on. The same command follows it again; `stop` ends '
      'it, `delete` gives the slices back.'
    )
    return 130
  if ours:
    try:
      tpu.delete()
    except cloud.Failed as error:  # The run is over all the same.
      cloud.say(str(error))
  return 0 if done else 1


def _ship(shell: cloud.Shell, bucket: str) -> tuple[str, str]:
  """Copies this commit into the bucket, which shows that it can be written.

  Returns:
    The commit and its archive.

  Raises:
    cloud.Failed: changes are not committed, or the bucket cannot be written.
  """
  commit = cloud.commit(shell)
  archive = f'{bucket}/code/{commit}.tar.gz'
  with tempfile.NamedTemporaryFile(suffix='.tar.gz') as file:
    git = ('git', '-C', str(cloud.ROOT), 'archive', '--format=tar.gz')
    shell.call(*git, f'--output={file.name}', commit)
    try:
      shell.call('gcloud', 'storage', 'cp', '--quiet', file.name, archive)
    except cloud.Failed as error:
      raise cloud.Failed(
        f'--bucket={bucket} cannot be written. Nothing was created.\n{error}'
      ) from error
  return commit, archive


def status(tpu: slices.Slices, args: argparse.Namespace) -> int:
  resource = tpu.find()
  said = f'{tpu.name}: {slices.state_of(resource)} {slices.reason(resource)}'
  cloud.say(said.rstrip())
  if job := jobs.last(tpu.shell, args.bucket, tpu.name):
    cloud.say(f'{job.folder}:')
    for host, words in sorted(job.states().items()):
      cloud.say(f'  {host}: {" ".join(words)}')
  return 0


def logs(tpu: slices.Slices, args: argparse.Namespace) -> int:
  job = _last(tpu, args)
  hosts = [h for h in job.states() if h != 'stop']
  if hosts:
    host = args.host or jobs.lead(hosts)
    cloud.say(f'{job.folder}/{host}.log (of {", ".join(sorted(hosts))}):')
    cloud.say(job.log(host))
  return 0


def stop(tpu: slices.Slices, args: argparse.Namespace) -> int:
  """The run saves and ends; the slices stay."""
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
    going = [h for h, words in states.items() if words[0] == 'running']
    if not going:
      cloud.say(
        f'{job.folder}: stopped. The command that ran it goes on with it.'
      )
      return 0
    if _gone(tpu):
      cloud.say(f'{job.folder}: nothing runs, as its slices are gone.')
      return 0
    if states != before:
      before, changed = states, time.monotonic()
    if time.monotonic() - changed > attempts.LOST:
      raise cloud.Failed(
        f'{", ".join(sorted(going))} gave no sign of life for '
        f'{attempts.LOST // 60} minutes. To be sure: {tpu.to_delete}'
      )
    cloud.say(f'Still saving: {", ".join(sorted(going))}')
    time.sleep(tpu.poll)


def _gone(tpu: slices.Slices) -> bool:
  return slices.state_of(tpu.look()) in slices.GONE


def _last(tpu, args) -> jobs.Job:
  """The last attempt; in a dry run, which cannot know, the first."""
  job = jobs.last(tpu.shell, args.bucket, tpu.name)
  if job is None and not tpu.shell.dry_run:
    raise cloud.Failed(f'Nothing was run as {tpu.name} ({args.bucket}/jobs).')
  return job or jobs.following(None, tpu.shell, args.bucket, tpu.name)


def delete(tpu: slices.Slices, args: argparse.Namespace) -> int:
  if tpu.find() or tpu.shell.dry_run:
    tpu.delete()
  else:
    cloud.say(f'There are no slices {tpu.name}.')
  return 0


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  actions = parser.add_subparsers(dest='action', required=True)
  for action in (create, run, status, logs, stop, delete):
    name = action.__name__
    of = actions.add_parser(name)
    of.set_defaults(call=action)
    of.add_argument('name', help='of slices and run')
    of.add_argument('--project', help='default: that of gcloud')
    of.add_argument('--zone', help='default: that of gcloud')
    of.add_argument('--dry_run', action='store_true', help='print the commands')
    of.add_argument('--poll', type=float, default=60, help='seconds')
    if name != 'delete':
      of.add_argument('--bucket', required=True, help='gs://NAME[/FOLDER]')
    if name in ('create', 'run'):
      needed = name == 'create'
      of.add_argument('--tpu', required=needed, help='v5e:4x4, or v5litepod-16')
      of.add_argument('--slices', type=int, default=1, help='of that shape')
      of.add_argument('--queue_for', default='24h', help='then give up')
      tier = of.add_mutually_exclusive_group()
      tier.add_argument('--spot', action='store_true', help='may be preempted')
      tier.add_argument('--reserved', action='store_true')
    if name == 'run':
      of.add_argument('command', nargs='+', help='after --')
    if name == 'logs':
      of.add_argument('--host', help='of which worker')
  return parser.parse_args()


def main() -> int:
  args = _arguments()
  args.name = cloud.resource_name(args.name, 40)
  if 'bucket' in args:
    args.bucket = cloud.bucket_folder(args.bucket)
  if args.action in ('create', 'run') and args.slices < 1:
    raise cloud.Failed(f'--slices={args.slices} must be at least 1.')
  if not args.poll > 0:
    raise cloud.Failed(f'--poll={args.poll:g} must be more than 0.')
  if args.action in ('create', 'run') and args.tpu:
    cloud.accelerator_type(args.tpu)
  project = cloud.setting(args.project, 'project', 'my-project')
  zone = cloud.setting(args.zone, 'compute/zone', 'us-west4-a')
  tpu = slices.Slices(
    shell=cloud.Shell(args.dry_run),
    name=args.name,
    where=[f'--project={project}', f'--zone={zone}'],
    poll=args.poll,
  )
  try:
    return args.call(tpu, args)
  except cloud.Failed:
    raise
  except Exception:  # Google does not answer, or with what nobody expects.
    cloud.say(f'If {tpu.name} is there, it costs money until {tpu.to_delete}')
    raise


if __name__ == '__main__':
  cloud.main(main)
