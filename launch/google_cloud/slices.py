"""TPU slices from Google's queue: a queued resource and its TPU VMs."""

import argparse
import dataclasses
import json
import re
import time

from launch.google_cloud import cloud

GONE = ('SUSPENDING', 'SUSPENDED', 'FAILED', 'DELETING', 'not there')
_QUEUED = ('gcloud', 'compute', 'tpus', 'queued-resources')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slices:
  """One or more slices of TPU under one name.

  Attributes:
    shell: runs commands.
    name: of the queued resource.
    where: --project=... and --zone=...
    poll: seconds between two looks.
  """

  shell: cloud.Shell
  name: str
  where: list[str]
  poll: float

  @property
  def to_delete(self) -> str:
    """The command that deletes them."""
    return f'`python launch/tpu.py delete {self.name} {" ".join(self.where)}`'

  def find(self) -> dict | None:
    """The queued resource as Google describes it; None: there is none.

    Raises:
      cloud.Failed: gcloud failed, or what it printed is no list.
    """
    found = self.shell.call(*_QUEUED, 'list', *self.where, '--format=json')
    if self.shell.dry_run:
      return None
    try:
      resources = json.loads(found)
    except ValueError:
      raise cloud.Failed(f'gcloud listed no JSON: {found[:200]!r}') from None
    end = f'/queuedResources/{self.name}'
    return next((r for r in resources if r.get('name', '').endswith(end)), None)

  def look(self) -> dict | None:
    """`find`, which goes on when the network is down for a while.

    A list without the slices is believed when the next lacks them, too.
    """
    found = cloud.patiently(self.find, self.poll)
    if found or self.shell.dry_run:
      return found
    time.sleep(self.poll)
    return cloud.patiently(self.find, self.poll)

  def obtain(self, flags: list[str], tries: int = 1) -> None:
    """Queues, and waits until the slices are there.

    Args:
      flags: of `queued-resources create`.
      tries: to queue; more than one only where slices of this name are ours.

    Raises:
      cloud.Failed: the request was refused, or its time in the queue is over.
        It is deleted, not left in the queue.
    """
    queued = False
    try:
      self._create(flags, tries)
      queued = True
      self.wait()
    except cloud.Failed as error:
      if not queued and re.search('already.exists', str(error), re.IGNORECASE):
        raise  # Somebody else made it since we looked.
      if self.delete_after(error) or queued:
        raise cloud.Failed(
          f'{error}\nCreated and deleted: {self.name}.'
        ) from error
      raise cloud.Failed(f'{error}\nNothing was created.') from error
    except KeyboardInterrupt:
      cloud.say(
        f'\n{self.name} may be in the queue. `status` shows it, '
        f'{self.to_delete} takes it back.'
      )
      raise

  def _create(self, flags: list[str], tries: int) -> None:
    for left in reversed(range(tries)):
      try:
        self.shell.call(*_QUEUED, 'create', self.name, *self.where, *flags)
        self.shell.did(f'Queued {self.name}: {" ".join(flags)}')
        return
      except cloud.Failed as error:
        if not left:
          raise
        cloud.say(f'Not queued, trying again: {error}')
        if self.look():
          return  # It was queued all the same.

  def wait(self) -> None:
    """Until the slices are there; raises cloud.Failed if they will not be."""
    before = None
    while True:
      resource = self.look()
      if self.shell.dry_run:
        return
      state = state_of(resource)
      if state != before:
        cloud.say(f'{self.name} is {state}.')
        before = state
      if state == 'ACTIVE':
        return
      if state in GONE:
        raise cloud.Failed(
          f'{self.name} got no TPU: it is {state}. {reason(resource)}\nThe '
          'zone has no capacity or the project no quota: try another zone, '
          'another --tpu, --spot, or a longer --queue_for.'
        )
      time.sleep(self.poll)

  def delete(self) -> bool:
    """Deletes queued resource and TPU VMs, and waits until they are gone.

    Returns:
      Whether they were there.

    Raises:
      cloud.Failed: they are still there after many tries.
    """
    try:
      return cloud.patiently(self._delete, self.poll, 10)
    except cloud.Unreachable as error:
      raise cloud.Failed(
        f'{self.name} could not be deleted and still costs money: '
        f'{self.to_delete}'
      ) from error
    except KeyboardInterrupt:
      cloud.say(f'\n{self.name} may still be there: {self.to_delete}')
      raise

  def _delete(self) -> bool:
    delete = (*_QUEUED, 'delete', self.name, *self.where)
    try:
      self.shell.call(*delete, '--force', '--quiet')
    except cloud.Failed:
      if self.find():
        raise
      return False
    self.shell.did(f'Deleted {self.name}.')
    return True

  def delete_after(self, error: cloud.Failed) -> bool:
    """`delete`, whose own failure does not hide the one before."""
    try:
      return self.delete()
    except cloud.Failed as left:
      raise cloud.Failed(f'{error}\n{left}') from error
    except KeyboardInterrupt:
      cloud.say(str(error))
      raise

  def ssh(self, command: str) -> str:
    """Runs a command on every worker of every slice."""
    return self.shell.call(
      *(*_QUEUED, 'ssh', self.name, *self.where, '--quiet'),
      *('--node=all', '--worker=all', f'--command={command}'),
    )


def state_of(resource: dict | None) -> str:
  if resource is None:
    return 'not there'
  return resource.get('state', {}).get('state', 'ACCEPTED')


def reason(resource: dict | None) -> str:
  """Why it failed, as Google says it."""
  data = (resource or {}).get('state', {}).get('failedData', {})
  return data.get('error', {}).get('message', '')


def made_by_run(resource: dict) -> bool:
  """Whether `run` queued it, and so deletes it."""
  node = resource['tpu']['nodeSpec'][0]['node']
  return node.get('labels', {}).get('made-by') == 'run'


def flags(args: argparse.Namespace) -> list[str]:
  """Of `queued-resources create`, from the command line."""
  accelerator = cloud.accelerator_type(args.tpu)
  return [
    f'--accelerator-type={accelerator}',
    f'--runtime-version={cloud.runtime_version(accelerator)}',
    *_nodes(args.name, args.slices),
    *(['--spot'] if args.spot else []),
    *(['--reserved'] if args.reserved else []),
    f'--valid-until-duration={args.queue_for}',
    f'--labels=made-by={args.action}',
    '--scopes=https://www.googleapis.com/auth/cloud-platform',
  ]


def check_same(args: argparse.Namespace, resource: dict) -> None:
  """Refuses flags that say otherwise than the slices that are there.

  Raises:
    cloud.Failed: names both.
  """
  node = resource['tpu']['nodeSpec'][0]['node']
  there = {
    'tpu': node.get('acceleratorType') or node.get('acceleratorConfig'),
    'slices': _count(resource),
    'spot': 'spot' in resource,
    'reserved': _is_reserved(resource),
  }
  asked = {
    'tpu': args.tpu and cloud.accelerator_type(args.tpu),
    'slices': args.slices if args.tpu or args.slices > 1 else None,
    'spot': args.spot,
    'reserved': args.reserved,
  }
  for flag, value in asked.items():
    if value and value != there[flag]:
      raise cloud.Failed(
        f'{args.name} is there with {flag} {there[flag]}, not {value}: `run` '
        'without --tpu, --slices, --spot and --reserved, or `delete` it first.'
      )


def _count(resource: dict) -> int:
  specs = resource['tpu']['nodeSpec']
  several = specs[0].get('multisliceParams', {})
  return int(several.get('nodeCount', len(specs)))


def _is_reserved(resource: dict) -> bool:
  reserved = resource.get('guaranteed', {}).get('reserved', False)
  return reserved or 'reservationName' in resource


def same_flags(args: argparse.Namespace, resource: dict) -> list[str]:
  """Of `queued-resources create`, to queue again what was preempted.

  Raises:
    cloud.Failed: the slices were made in a way that these flags cannot say.
  """
  node = resource['tpu']['nodeSpec'][0]['node']
  if missing := {'acceleratorType', 'runtimeVersion'} - set(node):
    raise cloud.Failed(
      f'{args.name} is {state_of(resource)} and cannot be queued again as it '
      f'was: it has no {", ".join(sorted(missing))}. `delete` and queue it.'
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
    *_nodes(args.name, _count(resource)),
    *(['--spot'] if 'spot' in resource else []),
    *(['--reserved'] if _is_reserved(resource) else []),
    f'--valid-until-duration={args.queue_for}',
    *(f'{flag}={value}' for flag, value in optional.items() if value),
    *(['--internal-ips'] if network.get('enableExternalIps') is False else []),
  ]


def _nodes(name: str, slices: int) -> list[str]:
  if slices == 1:
    return [f'--node-id={name}']
  return [f'--node-count={slices}', f'--node-prefix={name}']
