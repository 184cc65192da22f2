"""Runs a command on a GKE cluster with TPUs, through Google's XPK.

  python launch/gke.py run NAME --cluster=CLUSTER --tpu=v5e:4x4 --image=IMAGE \\
    --bucket=gs://BUCKET -- python -m ipo_md --gin_file=... \\
    --gin.MODEL_DIR=gs://BUCKET/runs/NAME

Runs this commit on top of IMAGE (Dockerfile) as a workload, and waits for its
end. Kueue queues the workload. JobSet restarts it from its checkpoint, up to
--restarts times, when it is preempted or stopped before its end (exit code 42
of launch/google_cloud/worker.py). If a workload of this name is there, it is
waited for; if it is over, it is created again.

A flag that is not listed below goes to `xpk workload create` as it is, such as
--priority=high or --project-number=N. XPK itself creates and deletes clusters,
and kubectl shows and deletes workloads: see launch/README.md. --dry_run prints
every command and runs none.
"""

import argparse
import contextlib
import pathlib
import shlex
import subprocess
import tarfile
import tempfile
import time

from launch.google_cloud import accelerators
from launch.google_cloud import arguments
from launch.google_cloud import cloud
from launch.google_cloud import worker

_GRACE = 120  # seconds that a workload has to save
_PAUSE = 20  # seconds between two looks
# XPK finds a workload by a part of its name, and waits for the wrong one. The
# JobSet has the workload's name.
_STATE = (
  'jsonpath={.metadata.name} {.status.conditions[?(@.status=="True")].type}'
)


def run(shell: cloud.Shell, args: argparse.Namespace) -> int:
  """Creates the workload unless it exists, and waits for its end.

  Raises:
    cloud.Failed: The workload was not created, or did not succeed.
  """
  shell.check_installed('xpk')
  if not any(flag.startswith('--storage') for flag in args.xpk):
    cloud.check_model_dir(worker.model_dir(args.command), args.command)
  accelerators.check_mesh(args.command, args.accelerator, args.slices)
  where = arguments.where(args)
  commit = cloud.commit(shell)
  # Writes a small object, as the run will.
  start = f'{args.bucket}/jobs/{args.name}/start'
  cloud.upload(shell, args.bucket, '-', start, stdin=args.name)
  kubectl = _kubectl(shell, where, args.cluster)
  delete = (*kubectl, 'delete', 'jobset', args.name, '--ignore-not-found')
  state = _look(shell, kubectl, args.name)
  try:
    if state == 'running':
      cloud.say(f'{args.name} exists. Waiting for its end.')
    else:
      if state:
        cloud.say(f'{args.name} is {state}. Creating it again.')
        shell.call(*delete)
      if code := _create(shell, where, args, commit):
        left = shell.call(*delete).strip() or 'Nothing was created.'
        raise cloud.Failed(f'xpk workload create failed ({code}). {left}')
    return _wait(shell, kubectl, args.name)
  except (KeyboardInterrupt, cloud.Unreachable):
    cloud.say(f'\n{args.name} may be running; to end it: {shlex.join(delete)}')
    raise


def _kubectl(
  shell: cloud.Shell, where: list[str], cluster: str
) -> tuple[str, ...]:
  """Fetches the cluster's credentials, and returns kubectl with its context.

  Raises:
    cloud.Failed: There is no such cluster.
  """
  project, zone = where
  found = shell.call(
    *('gcloud', 'container', 'clusters', 'list', project),
    *(f'--filter=name={cluster}', '--format=value(location)'),
  ).split()
  if not found and not shell.dry_run:
    raise cloud.Failed(
      f'There is no cluster {cluster}: `xpk cluster create` makes it '
      '(launch/README.md).'
    )
  region = zone.partition('=')[2].rpartition('-')[0]
  location = found[0] if found else region
  shell.call(
    *('gcloud', 'container', 'clusters', 'get-credentials', cluster),
    *(f'--location={location}', project, '--dns-endpoint'),
  )
  context = f'gke_{project.partition("=")[2]}_{location}_{cluster}'
  return ('kubectl', f'--context={context}', '--namespace=default')


def _look(
  shell: cloud.Shell, kubectl: tuple[str, ...], name: str
) -> str | None:
  """Returns 'Completed', 'Failed' or 'running', or None if it is not there."""
  get = (*kubectl, 'get', 'jobset', name, '--ignore-not-found', '-o', _STATE)
  found = shell.call(*get).split()
  ends = {'Completed', 'Failed'} & set(found[1:])
  return (ends.pop() if ends else 'running') if found else None


def _create(
  shell: cloud.Shell, where: list[str], args: argparse.Namespace, commit: str
) -> int:
  """Creates the workload, and returns XPK's exit code."""
  with contextlib.ExitStack() as stack:
    # What a dry run prints unpacks the files and can be run as it is.
    folder = f'{tempfile.gettempdir()}/ipo_md-{commit[:12]}'
    if not shell.dry_run:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
    _unpack(shell, commit, folder)
    return shell.shown(
      *('xpk', 'workload', 'create', f'--workload={args.name}'),
      *(f'--cluster={args.cluster}', *where),
      *(f'--tpu-type={args.accelerator}', f'--num-slices={args.slices}'),
      *(f'--base-docker-image={args.image}', f'--script-dir={folder}'),
      f'--max-restarts={args.restarts}',
      f'--termination-grace-period-seconds={_GRACE}',
      f'--env=JAX_COMPILATION_CACHE_DIR={args.bucket}/cache/jax',
      f'--env=TFDS_DATA_DIR={args.bucket}/data',
      f'--command=exec python {cloud.WORKER} -- {shlex.join(args.command)}',
      *args.xpk,
    )


def _unpack(shell: cloud.Shell, commit: str, folder: str) -> None:
  """Writes the files of the commit into a folder that XPK adds to the image."""
  command = ['git', '-C', str(cloud.ROOT), 'archive', commit]
  if shell.dry_run:
    cloud.say(f'mkdir -p {folder}')
    cloud.say(f'{shlex.join(command)} | tar -x -C {folder}')
    cloud.say(f'rm -f {folder}/.dockerignore; echo {commit} > {folder}/COMMIT')
    return
  archive = subprocess.Popen(command, stdout=subprocess.PIPE)
  with tarfile.open(fileobj=archive.stdout, mode='r|') as files:
    files.extractall(folder, filter='data')
  pathlib.Path(folder, '.dockerignore').unlink(missing_ok=True)
  # Without .git the run reads from this file what it saves in versions.json.
  pathlib.Path(folder, 'COMMIT').write_text(f'{commit}\n')


def _wait(shell: cloud.Shell, kubectl: tuple[str, ...], name: str) -> int:
  """Waits for the end of the workload.

  Raises:
    cloud.Failed: The workload failed, or was deleted.
    cloud.Unreachable: The cluster does not answer.
  """
  while True:
    state = cloud.patiently(lambda: _look(shell, kubectl, name), _PAUSE)
    if state == 'Completed' or shell.dry_run:
      return 0
    if state != 'running':
      raise cloud.Failed(
        f'{name} {"did not succeed" if state else "was deleted"}; the logs of '
        'its pods say why (launch/README.md), and the same command resumes it.'
      )
    time.sleep(_PAUSE)


def _arguments() -> argparse.Namespace:
  parser, add = arguments.parser('python launch/gke.py', __doc__)
  action = add(
    'run',
    run,
    [
      arguments.place('name of the workload'),
      arguments.shape(required=True),
      arguments.bucket(),
      arguments.command(),
    ],
  )
  action.add_argument('--cluster', required=True, help='name of the cluster')
  action.add_argument(
    '--image', required=True, help='image built from the Dockerfile'
  )
  action.add_argument(
    '--restarts', type=int, default=100, help='most restarts (default: 100)'
  )
  args, passed = parser.parse_known_args()
  args.xpk = passed
  return args


def main() -> int:
  args = _arguments()
  if words := [word for word in args.xpk if not word.startswith('--')]:
    raise cloud.Failed(f'{words[0]!r} is no flag: write --NAME=VALUE.')
  return args.call(cloud.Shell(args.dry_run), args)


if __name__ == '__main__':
  cloud.main(main)
