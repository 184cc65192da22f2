"""Runs a command on a GKE cluster with TPUs, through Google's XPK.

  python launch/gke.py run NAME --cluster=CLUSTER --tpu=v5e:4x4 --image=IMAGE \\
    --bucket=gs://BUCKET -- python -m ipo_md --gin_file=... \\
    --gin.MODEL_DIR="'gs://BUCKET/runs/NAME'"

  create  creates a cluster with TPU slices (xpk cluster create)
  run     runs this commit on top of IMAGE (Dockerfile) as a workload, and waits
          for its end. Kueue queues the workload. JobSet restarts it from its
          checkpoint, up to --restarts times, when it is preempted or stopped
          before its end (exit code 42 of launch/google_cloud/worker.py)
  status  lists the workload
  logs    prints the output of a workload, from Cloud Logging
  stop    deletes a workload, which saves on SIGTERM; `run` resumes it
  delete  deletes the cluster

XPK, Kueue and JobSet do the scheduling. --dry_run prints every command and runs
none. See launch/README.md.
"""

import argparse
import pathlib
import shlex
import subprocess
import tarfile
import tempfile
import time

from launch.google_cloud import accelerators
from launch.google_cloud import arguments
from launch.google_cloud import cloud

_GRACE = 120  # seconds that a workload has to save
_PAUSE = 20  # seconds between two tries to look
# Exit code of `xpk workload list --wait-for-job-completion` for a workload that
# failed. Any other code means that XPK got no answer.
_FAILED = 125


def create(shell: cloud.Shell, where: list[str], args) -> int:
  """Creates a cluster. A cluster that is left incomplete is deleted."""
  shell.check_installed('xpk')
  accelerators.check_offered(shell, where, args.accelerator)
  listed = ('gcloud', 'container', 'clusters', 'list', where[0])
  named = f'--filter=name={args.name}'
  if shell.call(*listed, named, '--format=value(name)').strip():
    raise cloud.Failed(f'The cluster {args.name} exists already.')
  try:
    code = shell.shown(
      *('xpk', 'cluster', 'create', f'--cluster={args.name}', *where),
      *(f'--tpu-type={args.accelerator}', f'--num-slices={args.slices}'),
      *_tier(args),
    )
  except KeyboardInterrupt:
    cloud.say(
      f'\nThe cluster {args.name} may exist and cost money. To delete it: '
      f'`python launch/gke.py delete {args.name} {" ".join(where)}`'
    )
    raise
  if code:
    left = delete(shell, where, args)
    raise cloud.Failed(
      f'xpk cluster create failed ({code}). '
      + ('It may still exist: ' if left else 'Created and deleted: ')
      + f'{args.name}.'
    )
  return 0


def run(shell: cloud.Shell, where: list[str], args) -> int:
  """Creates the workload unless it exists, and waits for its end.

  Raises:
    cloud.Failed: The workload was not created, or did not succeed.
  """
  shell.check_installed('xpk')
  commit = cloud.commit(shell)
  accelerators.check_offered(shell, where, args.accelerator)
  _check_bucket(shell, args.bucket, args.name)
  state = _look(shell, where, args)
  if state == 'finished' and stop(shell, where, args):
    raise cloud.Failed(f'{args.name} is over and could not be deleted.')
  if state == 'there':
    cloud.say(f'{args.name} exists. Waiting for its end; `stop` ends it.')
  else:
    _create(shell, where, args, commit)
  return _wait(shell, where, args)


def _look(shell: cloud.Shell, where: list[str], args) -> str | None:
  """Returns 'there' or 'finished', or None if there is no such workload."""
  listed = shell.call(
    *('xpk', 'workload', 'list', f'--cluster={args.cluster}', *where),
    f'--filter-by-job={args.name}',
  )
  rows = [line.split() for line in listed.splitlines()]
  row = next((row for row in rows if row[:1] == [args.name]), None)
  return row and ('finished' if 'Finished' in row else 'there')


def _create(shell: cloud.Shell, where: list[str], args, commit: str) -> None:
  """Creates the workload. One that is left incomplete is deleted."""
  with tempfile.TemporaryDirectory() as folder:
    _unpack(shell, commit, folder)
    try:
      code = shell.shown(
        *('xpk', 'workload', 'create', f'--workload={args.name}'),
        *(f'--cluster={args.cluster}', *where),
        *(f'--tpu-type={args.accelerator}', f'--num-slices={args.slices}'),
        *(f'--base-docker-image={args.image}', f'--script-dir={folder}'),
        f'--max-restarts={args.restarts}',
        f'--termination-grace-period-seconds={_GRACE}',
        f'--env=JAX_COMPILATION_CACHE_DIR={args.bucket}/cache/jax',
        f'--env=TFDS_DATA_DIR={args.bucket}/data',
        f'--command=exec python {cloud.WORKER} -- {shlex.join(args.command)}',
      )
    except KeyboardInterrupt:
      cloud.say(
        f'\n{args.name} may be running. To end it: {_to_stop(where, args)}'
      )
      raise
  if code:
    left = stop(shell, where, args)
    raise cloud.Failed(
      f'xpk workload create failed ({code}). '
      + ('It may still exist: ' if left else 'Deleted, nothing is running: ')
      + (_to_stop(where, args) if left else f'{args.name}.')
    )


def _wait(shell: cloud.Shell, where: list[str], args) -> int:
  """Waits for the end of the workload.

  Raises:
    cloud.Failed: The workload failed, or XPK does not answer.
  """
  try:
    for _ in range(5):
      code = shell.shown(
        *('xpk', 'workload', 'list', f'--cluster={args.cluster}', *where),
        f'--wait-for-job-completion={args.name}',
      )
      if code == 0:
        return 0
      if code == _FAILED:
        raise cloud.Failed(
          f'{args.name} did not succeed; `logs` says why, and `run` resumes it.'
        )
      cloud.say(f'XPK could not look ({code}); trying again.')
      time.sleep(_PAUSE)
  except KeyboardInterrupt:
    cloud.say(f'\n{args.name} keeps running; {_to_stop(where, args)} ends it.')
    raise
  raise cloud.Failed(
    f'XPK could not look ({code}). As far as is known, {args.name} is still '
    f'running: `run` waits for it again, and {_to_stop(where, args)} ends it.'
  )


def _to_stop(where: list[str], args) -> str:
  """Returns the command with which the user stops the workload."""
  flags = ' '.join([f'--cluster={args.cluster}', *where])
  return f'`python launch/gke.py stop {args.name} {flags}`'


def _check_bucket(shell: cloud.Shell, bucket: str, name: str) -> None:
  """Writes a small object, as the run will; raises if that is refused."""
  cloud.upload(shell, bucket, '-', f'{bucket}/jobs/{name}/start', stdin=name)


def _unpack(shell: cloud.Shell, commit: str, folder: str) -> None:
  """Writes the files of the commit into a folder that XPK adds to the image."""
  command = ['git', '-C', str(cloud.ROOT), 'archive', commit]
  if shell.dry_run:
    cloud.say(f'{" ".join(command)} | tar -x -C {folder}')
    return
  archive = subprocess.Popen(command, stdout=subprocess.PIPE)
  with tarfile.open(fileobj=archive.stdout, mode='r|') as files:
    files.extractall(folder, filter='data')
  pathlib.Path(folder, '.dockerignore').unlink(missing_ok=True)
  # Without .git the run reads from this file what it saves in versions.json.
  pathlib.Path(folder, 'COMMIT').write_text(f'{commit}\n')


def status(shell: cloud.Shell, where: list[str], args) -> int:
  """Lists the workload."""
  return shell.shown(
    *('xpk', 'workload', 'list', f'--cluster={args.cluster}', *where),
    f'--filter-by-job={args.name}',
  )


def logs(shell: cloud.Shell, where: list[str], args) -> int:
  """Prints the log of worker 0 of slice 0, whose process prints progress."""
  query = (
    'resource.type="k8s_container" '
    f'resource.labels.cluster_name="{args.cluster}" '
    f'resource.labels.pod_name:"{args.name}-slice-job-0-0-"'
  )
  return shell.shown(
    *('gcloud', 'logging', 'read', query, where[0], '--order=asc'),
    *('--format=value(textPayload)', f'--freshness={args.freshness}'),
  )


def stop(shell: cloud.Shell, where: list[str], args) -> int:
  """Deletes the workload, which saves first."""
  return shell.shown(
    *('xpk', 'workload', 'delete', f'--workload={args.name}'),
    *(f'--cluster={args.cluster}', *where),
  )


def delete(shell: cloud.Shell, where: list[str], args) -> int:
  """Deletes the cluster."""
  return shell.shown(
    'xpk', 'cluster', 'delete', f'--cluster={args.name}', *where, '--force'
  )


def _tier(args) -> list[str]:
  """Returns XPK's flag for how the TPUs are paid for."""
  if args.reservation:
    return [f'--reservation={args.reservation}']
  return ['--spot' if args.spot else '--on-demand']


def _arguments() -> argparse.Namespace:
  parser, add = arguments.parser('python launch/gke.py', __doc__)
  cluster = arguments.place('name of the cluster')
  workload = arguments.place('name of the workload')
  workload.add_argument('--cluster', required=True, help='name of the cluster')
  shape = arguments.shape(required=True)
  action = add('create', create, [cluster, shape])
  tier = action.add_mutually_exclusive_group()
  tier.add_argument(
    '--spot', action='store_true', help='use slices that may be preempted'
  )
  tier.add_argument('--reservation', help='name of a reservation to use')
  bucket, command = arguments.bucket(), arguments.command()
  action = add('run', run, [workload, shape, bucket, command])
  action.add_argument(
    '--image', required=True, help='image built from the Dockerfile'
  )
  action.add_argument(
    '--restarts',
    type=int,
    default=100,
    help='largest number of restarts (default: 100)',
  )
  add('status', status, [workload])
  action = add('logs', logs, [workload])
  action.add_argument(
    '--freshness', default='7d', help='how far to look back (default: 7d)'
  )
  add('stop', stop, [workload])
  add('delete', delete, [cluster])
  return parser.parse_args()


def main() -> int:
  args = _arguments()
  where = arguments.where(args)
  return args.call(cloud.Shell(args.dry_run), where, args)


if __name__ == '__main__':
  cloud.main(main)
