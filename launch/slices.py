"""TPU slices from Google's queue: a queued resource and its TPU VMs."""

import argparse
import dataclasses
import json
import time

import cloud

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

  def find(self) -> dict | None:
    """The queued resource as Google describes it; None: there is none."""
    found = self.shell.call(*_QUEUED, 'list', *self.where, '--format=json')
    end = f'/queuedResources/{self.name}'
    resources = json.loads(found or '[]')
    return next((r for r in resources if r['name'].endswith(end)), None)

  def look(self) -> dict | None:
    """`find`, which goes on when the network is down for a while."""
    return cloud.patiently(self.find, self.poll)

  def obtain(self, flags: list[str]) -> None:
    """Queues, and waits until the slices are there.

    Args:
      flags: of `queued-resources create`.

    Raises:
      cloud.Failed: the request was refused, or its time in the queue is over.
        It is deleted, not left in the queue.
    """
    create = (*_QUEUED, 'create', self.name, *self.where, *flags)
    try:
      self.shell.call(*create)
      self.shell.did(f'Queued {self.name}: {" ".join(flags)}')
      self.wait()
    except cloud.Failed as error:
      if self.look() is None:
        raise cloud.Failed(f'{error}\nNothing was created.') from error
      self.delete()
      raise cloud.Failed(
        f'{error}\nCreated and deleted: {self.name}.'
      ) from error
    except KeyboardInterrupt:
      cloud.say(
        f'\n{self.name} stays in the queue. `status` shows it, `delete` takes '
        'it back.'
      )
      raise

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

  def delete(self) -> None:
    """Deletes queued resource and TPU VMs, and waits until they are gone."""
    delete = (*_QUEUED, 'delete', self.name, *self.where)
    self.shell.call(*delete, '--force', '--quiet')
    self.shell.did(f'Deleted {self.name}.')

  def ssh(self, command: str) -> str:
    """Runs a command on every worker of every slice."""
    return self.shell.call(
      *(*_QUEUED, 'ssh', self.name, *self.where, '--quiet'),
      *('--node=all', '--worker=all', f'--command={command}'),
    )


def state_of(resource: dict | None) -> str:
  return resource['state']['state'] if resource else 'not there'


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


def same_flags(args: argparse.Namespace, resource: dict) -> list[str]:
  """Of `queued-resources create`, to queue again what was preempted."""
  specs = resource['tpu']['nodeSpec']
  node = specs[0]['node']
  slices = specs[0].get('multisliceParams', {}).get('nodeCount', len(specs))
  network = node.get('networkConfig', {})
  account = node.get('serviceAccount', {})
  reserved = resource.get('guaranteed', {}).get('reserved')
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
    *_nodes(args.name, int(slices)),
    *(['--spot'] if 'spot' in resource else []),
    *(['--reserved'] if reserved or 'reservationName' in resource else []),
    f'--valid-until-duration={args.queue_for}',
    *(f'{flag}={value}' for flag, value in optional.items() if value),
    *(['--internal-ips'] if network.get('enableExternalIps') is False else []),
  ]


def _nodes(name: str, slices: int) -> list[str]:
  if slices == 1:
    return [f'--node-id={name}']
  return [f'--node-count={slices}', f'--node-prefix={name}']
