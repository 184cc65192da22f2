"""Obtains TPU slices as queued resources of Cloud TPU, and deletes them."""

import dataclasses
import json
import re
import time

from launch.google_cloud import cloud

# States in which a queued resource has no TPUs, or not all of them, any more.
LOST = ('SUSPENDING', 'SUSPENDED', 'FAILED', 'PREEMPTED')
GONE = (*LOST, 'DELETING', 'not there')
_TPUS = ('gcloud', 'compute', 'tpus')
_QUEUED = (*_TPUS, 'queued-resources')
_LOST_NODE = ('PREEMPTED', 'TERMINATED', 'STOPPING', 'STOPPED', 'DELETING')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slices:
  """One or more TPU slices under one name.

  Attributes:
    shell: Shell that runs gcloud.
    name: Name of the queued resource.
    where: The flags --project=... and --zone=...
    poll: Time between two looks, in seconds.
  """

  shell: cloud.Shell
  name: str
  where: list[str]
  poll: float

  @property
  def to_delete(self) -> str:
    """The command with which the user deletes the slices."""
    return f'`python launch/tpu.py delete {self.name} {" ".join(self.where)}`'

  def find(self) -> dict | None:
    """Returns Google's description of the queued resource, or None.

    An active one gets the entry 'nodes', the descriptions of its slices. It
    stays active when one of them is preempted.

    Raises:
      cloud.Failed: gcloud failed, or did not print JSON.
    """
    found = self._list(_QUEUED)
    end = f'/queuedResources/{self.name}'
    found = next((r for r in found if r.get('name', '').endswith(end)), None)
    if found and found.get('state', {}).get('state') == 'ACTIVE':
      nodes = [
        node
        for node in self._list((*_TPUS, 'tpu-vm'))
        if node.get('queuedResource', '').endswith(end)
      ]
      found['nodes'] = nodes + [{}] * (count(found) - len(nodes))
    return found

  def _list(self, kind: tuple[str, ...]) -> list[dict]:
    """Returns what gcloud lists in this zone, or nothing in a dry run."""
    found = self.shell.call(*kind, 'list', *self.where, '--format=json')
    if self.shell.dry_run:
      return []
    try:
      return json.loads(found)
    except ValueError:
      raise cloud.Failed(
        f'gcloud did not print JSON: {found[:200]!r}'
      ) from None

  def look(self) -> dict | None:
    """Finds the queued resource even if the network fails for a while.

    A missing resource is looked for once more before None is returned.
    """
    found = cloud.patiently(self.find, self.poll)
    if found or self.shell.dry_run:
      return found
    time.sleep(self.poll)
    return cloud.patiently(self.find, self.poll)

  def obtain(self, flags: list[str], tries: int = 1) -> None:
    """Queues the slices and waits until they are active.

    Args:
      flags: Flags of `gcloud compute tpus queued-resources create`.
      tries: Number of tries to queue them. Pass more than one only if slices
        of this name are known to belong to the caller.

    Raises:
      cloud.Failed: The request was refused, or its time in the queue is over.
        It is deleted rather than left in the queue.
    """
    queued = False
    try:
      self._create(flags, tries)
      queued = True
      self.wait()
    except cloud.Failed as error:
      if not queued and re.search('already.exists', str(error), re.IGNORECASE):
        raise  # Someone else created it in the meantime.
      if self.delete_after(error) or queued:
        raise cloud.Failed(
          f'{error}\nCreated and deleted: {self.name}.'
        ) from error
      raise cloud.Failed(f'{error}\nNothing was created.') from error
    except KeyboardInterrupt:
      cloud.say(
        f'\n{self.name} may be in the queue; {self.to_delete} removes it.'
      )
      raise

  def _create(self, flags: list[str], tries: int) -> None:
    """Queues the slices, without waiting for them."""
    for left in reversed(range(tries)):
      try:
        self.shell.call(*_QUEUED, 'create', self.name, *self.where, *flags)
        self.shell.did(f'Queued {self.name}: {" ".join(flags)}')
        return
      except cloud.Failed as error:
        if not left:
          raise
        cloud.say(f'Not queued; trying again: {error}')
        if self.look():
          return  # The request arrived in spite of the error.

  def wait(self) -> None:
    """Waits until the slices are active.

    Raises:
      cloud.Failed: They will not become active. The message says why.
    """
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
          'zone has no capacity, or the project has no quota. Try another '
          'zone, another --tpu, --spot or a longer --queue_for.'
        )
      time.sleep(self.poll)

  def delete(self) -> bool:
    """Deletes the queued resource and its TPU VMs, and waits for the end.

    Returns:
      Whether there was anything to delete.

    Raises:
      cloud.Failed: They still exist after many tries.
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
    """Tries once to delete; returns whether there was anything to delete."""
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
    """Deletes the slices after an error, which stays in the message."""
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
  """Returns Google's state of a queued resource, or 'not there'.

  An active one of which a slice is lost is 'PREEMPTED'.
  """
  if resource is None:
    return 'not there'
  nodes = resource.get('nodes', [])
  if any(node.get('state', 'TERMINATED') in _LOST_NODE for node in nodes):
    return 'PREEMPTED'
  return resource.get('state', {}).get('state', 'ACCEPTED')


def workers(resource: dict | None) -> int:
  """Returns the number of TPU VMs of an active resource, or else 0."""
  nodes = (resource or {}).get('nodes', [])
  return sum(len(node.get('networkEndpoints', [])) for node in nodes)


def count(resource: dict) -> int:
  """Returns the number of slices."""
  specs = resource['tpu']['nodeSpec']
  several = specs[0].get('multisliceParams', {})
  return int(several.get('nodeCount', len(specs)))


def reason(resource: dict | None) -> str:
  """Returns why a queued resource failed, in Google's words."""
  data = (resource or {}).get('state', {}).get('failedData', {})
  return data.get('error', {}).get('message', '')


def made_by_run(resource: dict) -> bool:
  """Returns whether `run` queued the resource, and therefore deletes it."""
  node = resource['tpu']['nodeSpec'][0]['node']
  return node.get('labels', {}).get('made-by') == 'run'
