"""A command on all workers of a slice, through a folder of the bucket.

BUCKET/jobs/NAME/0001/start.sh     how each worker starts the first attempt
BUCKET/jobs/NAME/0001/HOST.log     what it printed there
BUCKET/jobs/NAME/0001/HOST.state   "HOST running BEAT" or "HOST exited CODE"
BUCKET/jobs/NAME/0001/stop.state   "stop requested"
"""

import dataclasses
import pathlib
import re
import shlex
import tempfile

from launch.google_cloud import cloud

_START = pathlib.Path(__file__).with_name('start.sh')


@dataclasses.dataclass(frozen=True)
class Job:
  """One attempt at a command.

  Attributes:
    shell: runs commands.
    folder: in the bucket.
  """

  shell: cloud.Shell
  folder: str

  def script(self) -> str:
    return _cat(self.shell, f'{self.folder}/start.sh')

  def log(self, host: str) -> str:
    return _cat(self.shell, f'{self.folder}/{host}.log')

  def states(self) -> dict[str, list[str]]:
    """Of hosts: running BEAT, or exited CODE; of 'stop': requested.

    What is only half written is left out.
    """
    text = _cat(self.shell, f'{self.folder}/*.state')
    pattern = r'^(\S+) (running \d+|exited \d+|requested)$'
    found = re.findall(pattern, text, re.MULTILINE)
    return {host: words.split() for host, words in found}

  def put(self, name: str, text: str) -> None:
    with tempfile.NamedTemporaryFile('w') as file:
      file.write(text)
      file.flush()
      copy = ('gcloud', 'storage', 'cp', '--quiet')
      self.shell.call(*copy, file.name, f'{self.folder}/{name}')


def last(shell: cloud.Shell, bucket: str, name: str) -> Job | None:
  """The last attempt at NAME; None: there was none."""
  scripts = f'{bucket}/jobs/{name}/*/start.sh'
  found = _or_nothing(lambda: shell.call('gcloud', 'storage', 'ls', scripts))
  folders = sorted(line.rpartition('/')[0] for line in found.split())
  return Job(shell, folders[-1]) if folders else None


def following(job: Job | None, shell, bucket: str, name: str) -> Job:
  """The attempt after `job`."""
  number = int(job.folder.rpartition('/')[2]) + 1 if job else 1
  return Job(shell, f'{bucket}/jobs/{name}/{number:04d}')


def script(folder: str, bucket: str, archive: str, commit: str, command) -> str:
  """What each worker runs: launch/start.sh under its settings."""
  settings = {
    'JOB': folder,
    'ARCHIVE': archive,
    'COMMIT': commit,
    'JAX_COMPILATION_CACHE_DIR': f'{bucket}/cache/jax',
    'TFDS_DATA_DIR': f'{bucket}/data',
  }
  lines = [f'export {k}={shlex.quote(v)}' for k, v in settings.items()]
  return '\n'.join(
    [*lines, f'COMMAND=({shlex.join(command)})', _START.read_text()]
  )


def same_command(one: str, other: str) -> bool:
  """Whether two scripts run the same command of the same commit."""
  kept = ('export COMMIT=', 'COMMAND=(')
  lines = [
    [line for line in text.splitlines() if line.startswith(kept)]
    for text in (one, other)
  ]
  return lines[0] == lines[1]


def lead(hosts) -> str:
  """The worker whose log is worth reading: process 0 prints the progress."""
  return min(hosts, key=lambda host: (not host.endswith('-w-0'), host))


def _cat(shell: cloud.Shell, path: str) -> str:
  return _or_nothing(lambda: shell.call('gcloud', 'storage', 'cat', path))


def _or_nothing(call) -> str:
  try:
    return call()
  except cloud.Failed as error:
    if 'matched no objects' in str(error):
      return ''
    raise
