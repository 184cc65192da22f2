"""Runs Google's commands, and reports failures to the user."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import hashlib
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from typing import TypeVar

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = 'launch/google_cloud/worker.py'  # relative to ROOT
# What a run needs from the checkout, and so must be committed.
_CODE = ('gin', 'ipo_md', 'launch', 'tasks', 'constraints.txt', 'setup.py')

_Result = TypeVar('_Result')


class Failed(Exception):
  """A command failed or an argument is wrong. The message is for the user."""


class Unreachable(Exception):
  """Google does not answer. What was started keeps running."""


@dataclasses.dataclass(frozen=True)
class Shell:
  """Runs commands.

  Attributes:
    dry_run: Whether to print the commands instead of running them.
  """

  dry_run: bool

  def call(self, *command: str, stdin: str | None = None) -> str:
    """Returns what the command printed, or '' in a dry run.

    Raises:
      Failed: The command is not installed or failed. The message includes its
        output.
    """
    if self.dry_run:
      print(shlex.join(command), flush=True)
      return ''
    self.check_installed(command[0])
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode:
      said = (done.stderr.strip() or done.stdout.strip())[-2000:]
      raise Failed(f'{shlex.join(command)[:300]}\n{said}')
    return done.stdout

  def did(self, text: str) -> None:
    """Reports what was done, except in a dry run, which does nothing."""
    if not self.dry_run:
      say(text)

  def shown(self, *command: str) -> int:
    """Runs a command that prints to the terminal, and returns its exit code."""
    print(shlex.join(command), flush=True)
    self.check_installed(command[0])
    return 0 if self.dry_run else subprocess.call(command)

  def check_installed(self, program: str) -> None:
    """Raises `Failed` if a program is not on PATH, except in a dry run."""
    if not self.dry_run and shutil.which(program) is None:
      raise Failed(
        f'{program} is not installed, or is not on PATH (launch/README.md).'
      )


def patiently(
  call: Callable[[], _Result], pause: float, tries: int = 60
) -> _Result:
  """Calls a function until it succeeds, because networks fail now and then.

  Args:
    call: Function without arguments that is safe to repeat.
    pause: Time between two tries, in seconds.
    tries: Number of tries before giving up.

  Raises:
    Unreachable: Every try raised `Failed`.
  """
  for _ in range(tries):
    try:
      return call()
    except Failed as error:
      say(f'Trying again: {str(error).splitlines()[-1]}')
      time.sleep(pause)
  raise Unreachable('Google did not answer. What was started keeps running.')


def setting(flag: str | None, name: str, example: str) -> str:
  """Returns the value of a flag, or else the property that gcloud has for it.

  Args:
    flag: Value of --project or --zone, if it is given.
    name: Name of the property: project or compute/zone.
    example: A value for the error message.

  Raises:
    Failed: Neither is set.
  """
  # This reads a local file, so a dry run does it too.
  try:
    found = flag or Shell(dry_run=False).call('gcloud', 'config', 'get', name)
  except Failed as error:
    if '(unset)' not in str(error):
      raise
    found = ''
  if not found.strip() or found.strip() == '(unset)':
    short = name.rpartition('/')[2]
    raise Failed(
      f'No {short} is set: give --{short}={example}, or run '
      f'`gcloud config set {name} {example}` once.'
    )
  return found.strip()


def commit(shell: Shell) -> str:
  """Returns the commit of this checkout, in which all code is committed.

  Raises:
    Failed: Some files differ from the commit, so they would not be what runs.
  """
  git = Shell(dry_run=False)
  status = ('git', '-C', str(ROOT), 'status', '--porcelain', '--')
  changed = git.call(*status, *_CODE).rstrip()
  if changed and not shell.dry_run:
    raise Failed(
      'A run uses a commit, and these files differ from it; commit them '
      f'first:\n{changed}'
    )
  return git.call('git', '-C', str(ROOT), 'rev-parse', 'HEAD').strip()


def upload(shell: Shell, bucket: str, *copy: str, stdin: str | None = None):
  """Copies a file into the bucket before anything is created.

  Args:
    shell: Shell that runs gcloud.
    bucket: The bucket, for the error message.
    *copy: Source, or '-' for `stdin`, and target.
    stdin: Text to copy.

  Raises:
    Failed: The bucket cannot be written.
  """
  try:
    shell.call('gcloud', 'storage', 'cp', '--quiet', *copy, stdin=stdin)
  except Failed as error:
    raise Failed(
      f'--bucket={bucket} cannot be written. Nothing was created.\n{error}'
    ) from error


def check_model_dir(directory: str | None, words: Sequence[str]) -> None:
  """Refuses a command that would write or read in vain.

  Args:
    directory: MODEL_DIR of the command, or None.
    words: Words of the command.

  Raises:
    Failed: MODEL_DIR is on a disk that is deleted with its machine, or the name
      of a bucket is one that no bucket has, such as BUCKET.
  """
  if directory is not None and not directory.startswith('gs://'):
    raise Failed(
      f'MODEL_DIR = {directory} is on a disk that is deleted with the TPUs: '
      'write gs://NAME/FOLDER.'
    )
  for name in re.findall('gs://([^/\'" ]*)', ' '.join(words)):
    if not re.fullmatch('[a-z0-9][a-z0-9._-]*', name):
      raise Failed(
        f'gs://{name} is no bucket: write the name of yours instead of {name}.'
      )


def bucket_folder(bucket: str) -> str:
  """Returns gs://NAME[/FOLDER] without a slash at its end.

  Raises:
    Failed: The text does not have that form.
  """
  if not re.fullmatch(r'gs://[a-z0-9][\w.-]+(/[\w.-]+)*/?', bucket):
    raise Failed(f'--bucket={bucket}: write gs://NAME or gs://NAME/FOLDER.')
  return bucket.rstrip('/')


def resource_name(name: str, longest: int = 40) -> str:
  """Returns a name that Google accepts: small letters, digits and hyphens.

  The name may be that of a sweep's run: ipo_tau0.1 becomes ipo-tau0-1. A name
  that is too long ends in a checksum instead.

  Args:
    name: Name of a run, of slices or of a cluster.
    longest: Largest number of characters.

  Raises:
    Failed: The name does not begin with a letter.
  """
  found = re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')
  if not re.match('[a-z]', found):
    raise Failed(f'The name {name!r} must begin with a letter.')
  if len(found) <= longest:
    return found
  checksum = hashlib.sha256(name.encode()).hexdigest()[:8]
  return f'{found[: longest - 9].rstrip("-")}-{checksum}'


def say(text: str) -> None:
  """Prints a line immediately, even into a file."""
  print(text, flush=True)


def main(run: Callable[[], int]) -> None:
  """Exits with the code of `run()`, or with a message and 1 if that fails."""
  try:
    sys.exit(run())
  except (Failed, Unreachable) as error:
    print(f'launch: {error}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    sys.exit(130)
