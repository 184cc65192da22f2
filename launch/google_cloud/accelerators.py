"""Google's accelerator types, such as v5litepod-16, and their chips."""

import ast
import math

from ipo_md.core import tpu_slices
from launch.google_cloud import cloud

_CHIPS = {chip.accelerator: chip for chip in tpu_slices.CHIPS.values()}


def accelerator_type(tpu: str) -> str:
  """Returns Google's name of a slice: v5litepod-16 for v5e:4x4.

  A cube of an unusual shape has no such name. XPK takes v5p-4x4x16 for it.

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
    shape = tpu.partition(':')[2]
    if shape not in chip.slices:
      return f'{chip.accelerator}-{shape}'
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
  """Returns the software version of the TPU VMs of an accelerator type.

  Raises:
    cloud.Failed: Cloud TPU has no such type, but GKE does.
  """
  prefix, _, units = accelerator.rpartition('-')
  if not _CHIPS[prefix].runtime or not units.isdigit():
    raise cloud.Failed(
      f'{accelerator} cannot be queued in Cloud TPU: use launch/gke.py.'
    )
  return _CHIPS[prefix].runtime


def check_mesh(command: list[str], accelerator: str, slices: int) -> None:
  """Refuses a command whose MESH_SHAPE does not use all of the slices.

  Args:
    command: Words of the command. The last --gin.MESH_SHAPE= counts.
    accelerator: Accelerator type of one slice, such as v5litepod-16.
    slices: Number of slices.

  Raises:
    cloud.Failed: The shape does not match. The message names the shape and the
      number of devices, of which a TPU7x chip has two and others one.
  """
  flag = '--gin.MESH_SHAPE='
  shapes = [word for word in command if word.startswith(flag)]
  try:
    shape = ast.literal_eval(shapes[-1].removeprefix(flag).strip())
    known = [int(size) for size in shape if size != -1]
  except (IndexError, SyntaxError, TypeError, ValueError):
    return  # There is no shape, or the command itself reports what is wrong.
  prefix, _, units = accelerator.rpartition('-')
  chip = _CHIPS[prefix]
  in_slice = math.prod(map(int, units.split('x')))
  if units.isdigit():
    in_slice //= chip.units
  devices = in_slice * chip.devices * slices
  rest = len(shape) - len(known)
  made = math.prod(known)
  if (
    len(shape) not in (3, 4)
    or rest > 1
    or min(known, default=1) < 1
    or (devices % made if rest else devices != made)
  ):
    raise cloud.Failed(
      f'{shapes[-1]} does not match the {devices} devices of {slices} x '
      f'{accelerator}: MESH_SHAPE needs 3 or 4 sizes whose product is '
      f'{devices}; one of them may be -1.'
    )
