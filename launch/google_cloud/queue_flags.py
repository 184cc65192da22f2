"""Flags of `gcloud compute tpus queued-resources create`."""

import argparse

from launch.google_cloud import accelerators
from launch.google_cloud import cloud
from launch.google_cloud import slices


def new(args: argparse.Namespace) -> list[str]:
  """Returns the flags of `queued-resources create` for new slices.

  Args:
    args: Arguments of the command line.
  """
  return [
    f'--accelerator-type={args.accelerator}',
    f'--runtime-version={accelerators.runtime_version(args.accelerator)}',
    *_nodes(args.name, args.slices),
    *(['--spot'] if args.spot else []),
    *(['--reserved'] if args.reserved else []),
    f'--valid-until-duration={args.queue_for}',
    f'--labels=made-by={args.action}',
    '--scopes=https://www.googleapis.com/auth/cloud-platform',
  ]


def check_same(args: argparse.Namespace, resource: dict) -> None:
  """Refuses arguments that contradict the existing slices.

  Args:
    args: Arguments of the command line.
    resource: Google's description of the existing slices.

  Raises:
    cloud.Failed: They differ. The message names both values.
  """
  node = resource['tpu']['nodeSpec'][0]['node']
  there = {
    'tpu': node.get('acceleratorType') or node.get('acceleratorConfig'),
    'slices': slices.count(resource),
    'spot': 'spot' in resource,
    'reserved': _is_reserved(resource),
  }
  asked = {
    'tpu': args.accelerator,
    'slices': args.slices if args.accelerator or args.slices > 1 else None,
    'spot': args.spot,
    'reserved': args.reserved,
  }
  for flag, value in asked.items():
    if value and value != there[flag]:
      raise cloud.Failed(
        f'{args.name} exists with {flag} {there[flag]}, not {value}: `run` it '
        'without --tpu, --slices, --spot and --reserved, or `delete` it first.'
      )


def _is_reserved(resource: dict) -> bool:
  reserved = resource.get('guaranteed', {}).get('reserved', False)
  return reserved or 'reservationName' in resource


def again(args: argparse.Namespace, resource: dict) -> list[str]:
  """Returns the flags of `queued-resources create` for preempted slices.

  Args:
    args: Arguments of the command line.
    resource: Google's description of the slices that were preempted.

  Raises:
    cloud.Failed: The flags cannot express how the slices were created.
  """
  node = resource['tpu']['nodeSpec'][0]['node']
  if missing := {'acceleratorType', 'runtimeVersion'} - set(node):
    raise cloud.Failed(
      f'{args.name} is {slices.state_of(resource)} and cannot be queued again '
      f'as it was: it has no {", ".join(sorted(missing))}. `delete` it '
      'first.'
    )
  network = node.get('networkConfig', {})
  account = node.get('serviceAccount', {})
  labels = ','.join(f'{k}={v}' for k, v in node.get('labels', {}).items())
  optional = {
    '--network': network.get('network'),
    '--subnetwork': network.get('subnetwork'),
    '--service-account': account.get('email'),
    '--scopes': ','.join(account.get('scope', ())),
    '--labels': labels,
    '--tags': ','.join(node.get('tags', ())),
  }
  return [
    f'--accelerator-type={node["acceleratorType"]}',
    f'--runtime-version={node["runtimeVersion"]}',
    *_nodes(args.name, slices.count(resource)),
    *(['--spot'] if 'spot' in resource else []),
    *(['--reserved'] if _is_reserved(resource) else []),
    f'--valid-until-duration={args.queue_for}',
    *(f'{flag}={value}' for flag, value in optional.items() if value),
    *(['--internal-ips'] if network.get('enableExternalIps') is False else []),
  ]


def _nodes(name: str, count: int) -> list[str]:
  """Returns the flags that name the nodes, of which each is one slice."""
  if count == 1:
    return [f'--node-id={name}']
  return [f'--node-count={count}', f'--node-prefix={name}']
