"""Google's commands, as launch/tpu.py and launch/gke.py run them.

Standard library only: this runs on a laptop without the environment of ipo_md.
"""

import ast
import dataclasses
import difflib
import hashlib
import math
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

_CODE = ('gin', 'ipo_md', 'launch', 'tasks', 'constraints.txt', 'setup.py')
ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = 'launch/google_cloud/worker.py'  # below ROOT

# Prefix of the accelerator type, its units per chip (TensorCores, or chips),
# runtime of a TPU VM (cloud.google.com/tpu/docs/runtimes), shapes of a slice.
_FLAT = '1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
_CUBES = (
  '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16'
)
_GENERATIONS = {
  'v4': ('v4', 2, 'tpu-ubuntu2204-base', _CUBES.split()),
  'v5e': ('v5litepod', 1, 'v2-alpha-tpuv5-lite', _FLAT.split()),
  'v5p': ('v5p', 2, 'v2-alpha-tpuv5', _CUBES.split()),
  'v6e': ('v6e', 1, 'v2-alpha-tpuv6e', _FLAT.split()),
}


class Failed(Exception):
  """A command failed or an argument is wrong; the message is for the user."""


def accelerator_type(tpu: str) -> str:
  """v5e:4x4 -> v5litepod-16, as Google names it; that name stays as it is.

  Raises:
    Failed: there is no such slice; names the nearest.
  """
  generation, colon, shape = tpu.partition(':')
  if not colon:
    prefix, _, units = tpu.rpartition('-')
    prefixes = [found[0] for found in _GENERATIONS.values()]
    if prefix in prefixes and units.isdigit():
      return tpu
    examples = ', '.join(f'{p}-16' for p in prefixes)
    raise Failed(
      f'--tpu={tpu} is no TPU slice. Write GENERATION:SHAPE, as v5e:4x4, with '
      f'one of {", ".join(_GENERATIONS)}; or a type, as {examples}.'
    )
  if generation not in _GENERATIONS:
    near = difflib.get_close_matches(generation, _GENERATIONS, 2, 0)
    raise Failed(
      f'--tpu={tpu}: there is no TPU {generation}; nearest: {", ".join(near)}.'
    )
  prefix, units, _, shapes = _GENERATIONS[generation]
  if shape not in shapes:
    sides = [int(side) for side in re.findall(r'\d+', shape)] or [1]
    near = _nearest(math.prod(sides), {s: _chips(s) for s in shapes})
    raise Failed(
      f'--tpu={tpu}: {generation} has no slice {shape}; nearest: '
      + ', '.join(f'{generation}:{s}' for s in near)
      + '.'
    )
  return f'{prefix}-{units * _chips(shape)}'


def runtime_version(accelerator: str) -> str:
  """The software of a TPU VM of this type."""
  prefix = accelerator.rpartition('-')[0]
  return next(v for p, _, v, _ in _GENERATIONS.values() if p == prefix)


def check_mesh(command: list[str], accelerator: str, slices: int) -> None:
  """Refuses a command whose MESH_SHAPE does not make the chips of the slices.

  Args:
    command: words; the last --gin.MESH_SHAPE= counts.
    accelerator: as v5litepod-16.
    slices: how many of them.

  Raises:
    Failed: names the shape and the chips.
  """
  flag = '--gin.MESH_SHAPE='
  shapes = [word for word in command if word.startswith(flag)]
  try:
    shape = ast.literal_eval(shapes[-1].removeprefix(flag).strip())
    known = [int(size) for size in shape if size != -1]
  except (IndexError, SyntaxError, TypeError, ValueError):
    return  # There is none, or the command itself says what is wrong with it.
  prefix, _, number = accelerator.rpartition('-')
  units = next(u for p, u, _, _ in _GENERATIONS.values() if p == prefix)
  chips = int(number) // units * slices
  rest = len(shape) - len(known)
  made = math.prod(known)
  if (
    len(shape) not in (3, 4)
    or rest > 1
    or min(known, default=1) < 1
    or (chips % made if rest else chips != made)
  ):
    raise Failed(
      f'{shapes[-1]} does not make the {chips} chips of {slices} x '
      f'{accelerator}: 3 or 4 sizes multiply to that, one may be -1.'
    )


def _chips(shape: str) -> int:
  return math.prod(int(side) for side in shape.split('x'))


def _nearest(size: int, sizes: dict[str, int]) -> list[str]:
  """The three names whose size differs from `size` by the least factor."""
  distance = lambda name: abs(math.log(sizes[name] / max(size, 1)))
  return sorted(sizes, key=distance)[:3]


class Unreachable(Exception):
  """Google does not answer; what was started goes on without us."""


@dataclasses.dataclass(frozen=True)
class Shell:
  """Runs commands, or with dry_run prints those that would be run."""

  dry_run: bool

  def call(self, *command: str, stdin: str | None = None) -> str:
    """What the command printed; '' in a dry run.

    Raises:
      Failed: the command is not installed or failed; holds what it said.
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
    """Says what was done, unless in a dry run nothing was."""
    if not self.dry_run:
      say(text)

  def shown(self, *command: str) -> int:
    """The exit code of a command that prints to the terminal."""
    print(shlex.join(command), flush=True)
    self.check_installed(command[0])
    return 0 if self.dry_run else subprocess.call(command)

  def check_installed(self, program: str) -> None:
    if not self.dry_run and shutil.which(program) is None:
      raise Failed(
        f'{program} is not installed, or not on PATH (launch/README.md).'
      )


def patiently(call, pause: float, tries: int = 60):
  """call(), and again when it fails: a laptop loses its network now and then.

  Args:
    call: does no harm when done twice.
    pause: seconds between two tries.
    tries: before it gives up.

  Raises:
    Unreachable: it failed so often.
  """
  for _ in range(tries):
    try:
      return call()
    except Failed as error:
      say(f'Trying again: {str(error).splitlines()[-1]}')
      time.sleep(pause)
  raise Unreachable('Google did not answer; what was started goes on.')


def setting(flag: str | None, name: str, example: str) -> str:
  """A flag, or else the property that gcloud has for it.

  Args:
    flag: --project or --zone.
    name: of the property: project, compute/zone.
    example: of a value.

  Raises:
    Failed: neither is set.
  """
  # Reads a local file, so a dry run does it too.
  try:
    found = flag or Shell(dry_run=False).call('gcloud', 'config', 'get', name)
  except Failed as error:
    if '(unset)' not in str(error):
      raise
    found = ''
  if not found.strip() or found.strip() == '(unset)':
    short = name.rpartition('/')[2]
    raise Failed(
      f'No {short}: give --{short}={example}, or once '
      f'`gcloud config set {name} {example}`.'
    )
  return found.strip()


def check_offered(shell: Shell, where: list[str], accelerator: str) -> None:
  """Refuses a type that Cloud TPU does not offer in the zone.

  Args:
    shell: runs gcloud.
    where: --project=... and --zone=...
    accelerator: as v5litepod-16.

  Raises:
    Failed: names the nearest types that are offered there.
  """
  found = shell.call(
    *('gcloud', 'compute', 'tpus', 'accelerator-types', 'list', *where),
    '--format=value(type)',
  ).split()
  if shell.dry_run or accelerator in found:
    return
  prefix, _, units = accelerator.rpartition('-')
  same = {t: int(t.rpartition('-')[2]) for t in found if t.startswith(prefix)}
  near = _nearest(int(units), same) or sorted(found)
  raise Failed(
    f'{accelerator} is not offered in this zone ({where[-1]}). '
    + (f'It offers: {", ".join(near)}.' if near else 'It has no TPUs.')
  )


def commit(shell: Shell) -> str:
  """The commit of this checkout, all of whose code must be committed.

  Raises:
    Failed: files differ from the commit, so they would not be what runs.
  """
  git = Shell(dry_run=False)
  status = ('git', '-C', str(ROOT), 'status', '--porcelain', '--')
  changed = git.call(*status, *_CODE).rstrip()
  if changed and not shell.dry_run:
    raise Failed(
      'What runs is a commit, and these files differ from it; commit them '
      f'first:\n{changed}'
    )
  return git.call('git', '-C', str(ROOT), 'rev-parse', 'HEAD').strip()


def bucket_folder(bucket: str) -> str:
  """gs://name[/folder] without its last slash.

  Raises:
    Failed: it is not that.
  """
  if not re.fullmatch(r'gs://[a-z0-9][\w.-]+(/[\w.-]+)*/?', bucket):
    raise Failed(f'--bucket={bucket}: write gs://NAME or gs://NAME/FOLDER.')
  return bucket.rstrip('/')


def resource_name(name: str, longest: int) -> str:
  """A name that Google takes: small letters, digits and hyphens.

  A run's name may be one of a sweep: ipo_tau0.1 -> ipo-tau0-1. What is too long
  ends in a checksum instead.

  Raises:
    Failed: it does not begin with a letter.
  """
  found = re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')
  if not re.match('[a-z]', found):
    raise Failed(f'The name {name!r} must begin with a letter.')
  if len(found) <= longest:
    return found
  checksum = hashlib.sha256(name.encode()).hexdigest()[:8]
  return f'{found[: longest - 9].rstrip("-")}-{checksum}'


def say(text: str) -> None:
  print(text, flush=True)


def main(run) -> None:
  """Runs `run()`; what went wrong is one message and exit code 1."""
  try:
    sys.exit(run())
  except (Failed, Unreachable) as error:
    print(f'launch: {error}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    sys.exit(130)
