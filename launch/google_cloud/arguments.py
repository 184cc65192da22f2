"""Command-line arguments that launch/tpu.py and launch/gke.py share."""

import argparse
from collections.abc import Callable
from collections.abc import Sequence

from launch.google_cloud import accelerators
from launch.google_cloud import cloud

_Add = Callable[..., argparse.ArgumentParser]


def parser(door: str, description: str) -> tuple[argparse.ArgumentParser, _Add]:
  """Returns a parser, and the function that adds an action to it.

  Args:
    door: Command that the user typed: 'python launch/tpu.py'.
    description: Text of --help.
  """
  found = argparse.ArgumentParser(
    prog=door,
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  actions = found.add_subparsers(dest='action', required=True)

  def add(
    name: str,
    call: Callable[..., int],
    parents: Sequence[argparse.ArgumentParser],
  ) -> argparse.ArgumentParser:
    """Adds the action `name`, which `call` performs."""
    action = actions.add_parser(name, parents=parents)
    action.set_defaults(call=call)
    return action

  return found, add


def group() -> argparse.ArgumentParser:
  """Returns an empty group of arguments that several actions can share."""
  return argparse.ArgumentParser(add_help=False)


def place(named: str) -> argparse.ArgumentParser:
  """Returns the arguments of every action.

  Args:
    named: Help text of the argument NAME.
  """
  found = group()
  found.add_argument('name', type=cloud.resource_name, help=named)
  found.add_argument('--project', help="default: gcloud's project")
  found.add_argument('--zone', help="default: gcloud's compute/zone")
  found.add_argument(
    '--dry_run',
    action='store_true',
    help='print the commands without running them',
  )
  return found


def bucket() -> argparse.ArgumentParser:
  """Returns the argument --bucket."""
  found = group()
  found.add_argument(
    '--bucket',
    required=True,
    type=cloud.bucket_folder,
    help='gs://NAME or gs://NAME/FOLDER, for code, logs and caches',
  )
  return found


def shape(*, required: bool) -> argparse.ArgumentParser:
  """Returns the arguments that say which slices to use."""
  found = group()
  found.add_argument(
    '--tpu',
    required=required,
    dest='accelerator',
    metavar='TPU',
    type=accelerators.accelerator_type,
    help='shape of a slice: v5e:4x4, or v5litepod-16',
  )
  found.add_argument(
    '--slices', default=1, type=_count, help='number of slices (default: 1)'
  )
  return found


def command() -> argparse.ArgumentParser:
  """Returns the command that is given after --."""
  found = group()
  found.add_argument('command', nargs='+', help='command to run, after --')
  return found


def where(args: argparse.Namespace) -> list[str]:
  """Returns the flags --project=... and --zone=... for Google's commands.

  Raises:
    cloud.Failed: Neither the arguments nor gcloud say which.
  """
  project = cloud.setting(args.project, 'project', 'my-project')
  zone = cloud.setting(args.zone, 'compute/zone', 'us-west4-a')
  return [f'--project={project}', f'--zone={zone}']


def _count(text: str) -> int:
  number = int(text)
  if number < 1:
    raise cloud.Failed(f'--slices={number} must be at least 1.')
  return number
