"""Keeps each attempt at a command in a folder of the bucket.

BUCKET/jobs/NAME/0001/start.sh     what each worker runs in the first attempt
BUCKET/jobs/NAME/0001/HOST.log     what the command printed on that worker
BUCKET/jobs/NAME/0001/HOST.state   "HOST running BEAT" or "HOST exited CODE"
BUCKET/jobs/NAME/0001/stop.state   "stop requested"
(HOST is a machine's name, with slice-N- before it if there are several slices.)
"""

from collections.abc import Callable
from collections.abc import Iterable
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
    shell: Shell that runs gcloud.
    folder: Folder of the attempt in the bucket.
  """

  shell: cloud.Shell
  folder: str

  def script(self) -> str:
    """Returns the script that each worker runs."""
    return _cat(self.shell, f'{self.folder}/start.sh')

  def log(self, host: str) -> str:
    """Returns what the command has printed on a worker."""
    return _cat(self.shell, f'{self.folder}/{host}.log')

  def states(self) -> dict[str, list[str]]:
    """Returns the state of each worker, and of 'stop' if it was requested.

    A state is ['running', BEAT], ['exited', CODE] or, for 'stop',
    ['requested']. A state that is only half written is left out.
    """
    text = _cat(self.shell, f'{self.folder}/*.state')
    pattern = r'^(\S+) (running \d+|exited \d+|requested)$'
    found = re.findall(pattern, text, re.MULTILINE)
    return {host: words.split() for host, words in found}

  def put(self, name: str, text: str) -> None:
    """Writes a file into the folder."""
    with tempfile.NamedTemporaryFile('w') as file:
      file.write(text)
      file.flush()
      copy = ('gcloud', 'storage', 'cp', '--quiet')
      self.shell.call(*copy, file.name, f'{self.folder}/{name}')


def last(shell: cloud.Shell, bucket: str, name: str) -> Job | None:
  """Returns the last attempt at NAME, or None if there was none."""
  scripts = f'{bucket}/jobs/{name}/*/start.sh'
  found = _or_nothing(lambda: shell.call('gcloud', 'storage', 'ls', scripts))
  folders = sorted(line.rpartition('/')[0] for line in found.split())
  return Job(shell, folders[-1]) if folders else None


def following(
  job: Job | None, shell: cloud.Shell, bucket: str, name: str
) -> Job:
  """Returns the attempt after `job`, or the first one if that is None."""
  number = int(job.folder.rpartition('/')[2]) + 1 if job else 1
  return Job(shell, f'{bucket}/jobs/{name}/{number:04d}')


def script(
  folder: str, bucket: str, archive: str, commit: str, command: list[str]
) -> str:
  """Returns what each worker runs: start.sh with its settings on top.

  Args:
    folder: Folder of the attempt in the bucket.
    bucket: The bucket, which also holds compiled programs and data sets.
    archive: Path of the commit's files in the bucket.
    commit: Hash of the commit.
    command: Words of the command.
  """
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
  """Returns whether two scripts run the same command of the same commit."""
  compared = ('export COMMIT=', 'COMMAND=(')
  lines = [
    [line for line in text.splitlines() if line.startswith(compared)]
    for text in (one, other)
  ]
  return lines[0] == lines[1]


def lead(hosts: Iterable[str]) -> str:
  """Returns the worker of process 0, which is the one that prints progress."""
  return min(hosts, key=lambda host: (not host.endswith('-w-0'), host))


def _cat(shell: cloud.Shell, path: str) -> str:
  return _or_nothing(lambda: shell.call('gcloud', 'storage', 'cat', path))


def _or_nothing(call: Callable[[], str]) -> str:
  """Returns what gcloud printed, or '' where there are no such objects."""
  try:
    return call()
  except cloud.Failed as error:
    if 'matched no objects' in str(error):
      return ''
    raise
