"""Google's accelerator types, such as v5litepod-16, and their chips."""

import ast
import math

from ipo_md.core import tpu_slices
from launch.google_cloud import cloud

_CHIPS = {chip.accelerator: chip for chip in tpu_slices.CHIPS.values()}


def accelerator_type(tpu: str) -> str:
  """Returns Google's name of a slice: v5litepod-16 for v5e:4x4.

  Args:
    tpu: A topology such as v5e:4x4, or an accelerator type, which is returned
      unchanged.

  Raises:
    cloud.Failed: There is no such slice. The message names the nearest ones.
  """
  if ':' in tpu:
    try:
      chip = tpu_slices.chip(tpu, setting='--tpu=')
    except ValueError as error:
      raise cloud.Failed(str(error)) from error
    return f'{chip.accelerator}-{chip.units * tpu_slices.size(tpu)}'
  prefix, _, units = tpu.rpartition('-')
  if prefix in _CHIPS and units.isdigit():
    return tpu
  examples = ', '.join(f'{p}-16' for p in _CHIPS)
  raise cloud.Failed(
    f'--tpu={tpu} is not a TPU slice. Write GENERATION:SHAPE, for example '
    f'v5e:4x4, with one of {", ".join(tpu_slices.CHIPS)}; or write an '
    f'accelerator type, for example {examples}.'
  )


def runtime_version(accelerator: str) -> str:
  """Returns the software version of the TPU VMs of an accelerator type."""
  return _CHIPS[accelerator.rpartition('-')[0]].runtime


def check_mesh(command: list[str], accelerator: str, slices: int) -> None:
  """Refuses a command whose MESH_SHAPE does not use all chips of the slices.

  Args:
    command: Words of the command. The last --gin.MESH_SHAPE= counts.
    accelerator: Accelerator type of one slice, such as v5litepod-16.
    slices: Number of slices.

  Raises:
    cloud.Failed: The shape does not match. The message names the shape and the
      number of chips.
  """
  flag = '--gin.MESH_SHAPE='
  shapes = [word for word in command if word.startswith(flag)]
  try:
    shape = ast.literal_eval(shapes[-1].removeprefix(flag).strip())
    known = [int(size) for size in shape if size != -1]
  except (IndexError, SyntaxError, TypeError, ValueError):
    return  # There is no shape, or the command itself reports what is wrong.
  prefix, _, units = accelerator.rpartition('-')
  chips = int(units) // _CHIPS[prefix].units * slices
  rest = len(shape) - len(known)
  made = math.prod(known)
  if (
    len(shape) not in (3, 4)
    or rest > 1
    or min(known, default=1) < 1
    or (chips % made if rest else chips != made)
  ):
    raise cloud.Failed(
      f'{shapes[-1]} does not match the {chips} chips of {slices} x '
      f'{accelerator}: MESH_SHAPE needs 3 or 4 sizes whose product is {chips}; '
      'one of them may be -1.'
    )


def check_offered(
  shell: cloud.Shell, where: list[str], accelerator: str
) -> None:
  """Refuses an accelerator type that Cloud TPU does not offer in the zone.

  Args:
    shell: Shell that runs gcloud.
    where: The flags --project=... and --zone=...
    accelerator: Accelerator type, such as v5litepod-16.

  Raises:
    cloud.Failed: The zone does not offer it. The message names the nearest
      types that it does offer.
  """
  found = shell.call(
    *('gcloud', 'compute', 'tpus', 'accelerator-types', 'list', *where),
    '--format=value(type)',
  ).split()
  if shell.dry_run or accelerator in found:
    return
  prefix, _, wanted = accelerator.rpartition('-')
  units = {t: int(t.rpartition('-')[2]) for t in found if t.startswith(prefix)}
  factor = lambda name: abs(math.log(units[name] / max(int(wanted), 1)))
  near = sorted(units, key=factor)[:3] or sorted(found)
  raise cloud.Failed(
    f'{accelerator} is not offered in this zone ({where[-1]}). '
    + (f'It offers: {", ".join(near)}.' if near else 'It has no TPUs.')
  )
