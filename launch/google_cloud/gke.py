"""Runs a command on a GKE cluster with TPUs, through Google's XPK.

  python launch/gke.py run NAME --cluster=CLUSTER --tpu=v5e:4x4 --image=IMAGE \\
    --bucket=gs://BUCKET -- python -m ipo_md --gin_file=... \\
    --gin.MODEL_DIR="'gs://BUCKET/runs/NAME'"

  create  a cluster (xpk cluster create) with slices of TPU
  run     this commit on top of IMAGE (Dockerfile), as a workload that is queued
          (Kueue) and, up to --restarts times, started again from its checkpoint
          when it is preempted or stopped before its end (JobSet, on exit code
          42 of launch/google_cloud/worker.py); waits for its end
  status  the workloads of the cluster
  logs    what a workload printed, out of Cloud Logging
  stop    deletes a workload, which saves on SIGTERM; `run` goes on with it
  delete  the cluster

XPK, Kueue and JobSet schedule; nothing here does. --dry_run prints every
command and runs none. launch/README.md says the rest.
"""

import argparse
import pathlib
import shlex
import subprocess
import tarfile
import tempfile
import time

from launch.google_cloud import cloud

_GRACE = 120  # seconds that a workload has to save
_PAUSE = 20  # seconds between two tries to look
_FAILED = 125  # of xpk workload list --wait-for-job-completion; else: no answer


def create(shell: cloud.Shell, where: list[str], args) -> int:
  """A cluster. One that could not be made whole is deleted again."""
  shell.check_installed('xpk')
  accelerator = cloud.accelerator_type(args.tpu)
  cloud.check_offered(shell, where, accelerator)
  listed = ('gcloud', 'container', 'clusters', 'list', where[0])
  named = f'--filter=name={args.name}'
  if shell.call(*listed, named, '--format=value(name)').strip():
    raise cloud.Failed(f'The cluster {args.name} is there already.')
  try:
    code = shell.shown(
      *('xpk', 'cluster', 'create', f'--cluster={args.name}', *where),
      *(f'--tpu-type={accelerator}', f'--num-slices={args.slices}'),
      *_tier(args),
    )
  except KeyboardInterrupt:
    cloud.say(
      f'\nThe cluster {args.name} may be there and cost money: '
      f'`python launch/gke.py delete {args.name} {" ".join(where)}`'
    )
    raise
  if code:
    left = delete(shell, where, args)
    raise cloud.Failed(
      f'xpk cluster create failed ({code}). '
      + ('It may be there still: ' if left else 'Created and deleted: ')
      + f'{args.name}.'
    )
  return 0


def run(shell: cloud.Shell, where: list[str], args) -> int:
  """Creates the workload, unless it runs, and waits for its end.

  Raises:
    cloud.Failed: it was not created, or did not succeed.
  """
  shell.check_installed('xpk')
  commit = cloud.commit(shell)
  accelerator = cloud.accelerator_type(args.tpu)
  cloud.check_offered(shell, where, accelerator)
  _check_bucket(shell, args.bucket, args.name)
  state = _look(shell, where, args)
  if state == 'finished' and stop(shell, where, args):
    raise cloud.Failed(f'{args.name} is over and could not be deleted.')
  if state == 'there':
    cloud.say(f'{args.name} is there: waiting for it. `stop` ends it.')
  else:
    _create(shell, where, args, commit, accelerator)
  return _wait(shell, where, args)


def _look(shell: cloud.Shell, where: list[str], args) -> str | None:
  """Whether the workload is there or finished; None: there is none."""
  listed = shell.call(
    *('xpk', 'workload', 'list', f'--cluster={args.cluster}', *where),
    f'--filter-by-job={args.name}',
  )
  rows = [line.split() for line in listed.splitlines()]
  row = next((row for row in rows if row[:1] == [args.name]), None)
  return row and ('finished' if 'Finished' in row else 'there')


def _create(shell, where: list[str], args, commit: str, accelerator: str):
  """Creates the workload; what could not be made whole is deleted again."""
  with tempfile.TemporaryDirectory() as folder:
    _unpack(shell, commit, folder)
    try:
      code = shell.shown(
        *('xpk', 'workload', 'create', f'--workload={args.name}'),
        *(f'--cluster={args.cluster}', *where),
        *(f'--tpu-type={accelerator}', f'--num-slices={args.slices}'),
        *(f'--base-docker-image={args.image}', f'--script-dir={folder}'),
        f'--max-restarts={args.restarts}',
        f'--termination-grace-period-seconds={_GRACE}',
        f'--env=JAX_COMPILATION_CACHE_DIR={args.bucket}/cache/jax',
        f'--env=TFDS_DATA_DIR={args.bucket}/data',
        f'--command=exec python {cloud.WORKER} -- {shlex.join(args.command)}',
      )
    except KeyboardInterrupt:
      cloud.say(f'\n{args.name} may be there: {_to_stop(where, args)}')
      raise
  if code:
    left = stop(shell, where, args)
    raise cloud.Failed(
      f'xpk workload create failed ({code}). '
      + ('It may be there still: ' if left else 'Deleted, nothing runs: ')
      + (_to_stop(where, args) if left else f'{args.name}.')
    )


def _wait(shell: cloud.Shell, where: list[str], args) -> int:
  """Waits for the end of the workload; raises cloud.Failed if it failed."""
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
          f'{args.name} did not succeed; `logs` says why. `run` goes on with '
          'it.'
        )
      cloud.say(f'xpk could not look ({code}): trying again.')
      time.sleep(_PAUSE)
  except KeyboardInterrupt:
    cloud.say(f'\n{args.name} goes on: {_to_stop(where, args)} ends it.')
    raise
  raise cloud.Failed(
    f'xpk could not look ({code}). {args.name} is still going, as far as is '
    f'known: `run` waits for it again, {_to_stop(where, args)} ends it.'
  )


def _to_stop(where: list[str], args) -> str:
  flags = ' '.join([f'--cluster={args.cluster}', *where])
  return f'`python launch/gke.py stop {args.name} {flags}`'


def _check_bucket(shell: cloud.Shell, bucket: str, name: str) -> None:
  """Writes a small object, as the run will; cloud.Failed if it cannot."""
  target = f'{bucket}/jobs/{name}/start'
  try:
    shell.call('gcloud', 'storage', 'cp', '--quiet', '-', target, stdin=name)
  except cloud.Failed as error:
    raise cloud.Failed(
      f'--bucket={bucket} cannot be written. Nothing was created.\n{error}'
    ) from error


def _unpack(shell: cloud.Shell, commit: str, folder: str) -> None:
  """The files of the commit into a folder, which XPK adds to the image."""
  command = ['git', '-C', str(cloud.ROOT), 'archive', commit]
  if shell.dry_run:
    cloud.say(f'{" ".join(command)} | tar -x -C {folder}')
    return
  archive = subprocess.Popen(command, stdout=subprocess.PIPE)
  with tarfile.open(fileobj=archive.stdout, mode='r|') as files:
    files.extractall(folder, filter='data')
  pathlib.Path(folder, '.dockerignore').unlink(missing_ok=True)
  head = pathlib.Path(folder, '.git', 'HEAD')  # versions.json names it
  head.parent.mkdir()
  head.write_text(f'{commit}\n')


def status(shell: cloud.Shell, where: list[str], args) -> int:
  return shell.shown(
    *('xpk', 'workload', 'list', f'--cluster={args.cluster}', *where),
    f'--filter-by-job={args.name}',
  )


def logs(shell: cloud.Shell, where: list[str], args) -> int:
  """Of worker 0 of slice 0, whose process prints the progress."""
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
  return shell.shown(
    *('xpk', 'workload', 'delete', f'--workload={args.name}'),
    *(f'--cluster={args.cluster}', *where),
  )


def delete(shell: cloud.Shell, where: list[str], args) -> int:
  return shell.shown(
    'xpk', 'cluster', 'delete', f'--cluster={args.name}', *where, '--force'
  )


def _tier(args) -> list[str]:
  if args.reservation:
    return [f'--reservation={args.reservation}']
  return ['--spot' if args.spot else '--on-demand']


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  actions = parser.add_subparsers(dest='action', required=True)
  for action in (create, run, status, logs, stop, delete):
    name = action.__name__
    of = actions.add_parser(name)
    of.set_defaults(call=action)
    of.add_argument('name', help='of the cluster, or of the workload')
    of.add_argument('--project', help='default: that of gcloud')
    of.add_argument('--zone', help='default: that of gcloud')
    of.add_argument('--dry_run', action='store_true', help='print the commands')
    if name not in ('create', 'delete'):
      of.add_argument('--cluster', required=True)
    if name in ('create', 'run'):
      of.add_argument('--tpu', required=True, help='v5e:4x4, or v5litepod-16')
      of.add_argument('--slices', type=int, default=1, help='of that shape')
    if name == 'create':
      tier = of.add_mutually_exclusive_group()
      tier.add_argument('--spot', action='store_true', help='may be preempted')
      tier.add_argument('--reservation', help='its name')
    if name == 'run':
      of.add_argument('--image', required=True, help='of the Dockerfile')
      of.add_argument('--bucket', required=True, help='gs://NAME[/FOLDER]')
      of.add_argument('--restarts', type=int, default=100)
      of.add_argument('command', nargs='+', help='after --')
    if name == 'logs':
      of.add_argument('--freshness', default='7d', help='how far back')
  return parser.parse_args()


def main() -> int:
  args = _arguments()
  args.name = cloud.resource_name(args.name, 40)
  if args.action == 'run':
    args.bucket = cloud.bucket_folder(args.bucket)
  if args.action in ('create', 'run') and args.slices < 1:
    raise cloud.Failed(f'--slices={args.slices} must be at least 1.')
  project = cloud.setting(args.project, 'project', 'my-project')
  zone = cloud.setting(args.zone, 'compute/zone', 'us-west4-a')
  where = [f'--project={project}', f'--zone={zone}']
  return args.call(cloud.Shell(args.dry_run), where, args)


if __name__ == '__main__':
  cloud.main(main)
