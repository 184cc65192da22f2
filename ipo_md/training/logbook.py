"""What a training run reports: metrics, sizes and versions."""

import importlib.metadata
import json
import math
import pathlib
import subprocess

from etils import epath
import jax
import numpy as np

from ipo_md.core import progress

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def write(writer, step, values, texts) -> None:
  writer.scalars(step, values)
  writer.texts(step, texts)


def means(window, done, max_skipped) -> tuple[dict[str, float], float]:
  """Means over the updates up to `done` but those that were skipped."""
  window = jax.device_get(window)
  made, skipped = [], 0
  for step, metrics in enumerate(window, done - len(window) + 1):
    in_a_row = metrics.pop('skipped_in_a_row', 0)
    skipped += in_a_row > 0
    bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
    if in_a_row > max_skipped or bad and not in_a_row:
      values = ', '.join(f'{k} is {v}' for k, v in (bad or metrics).items())
      raise FloatingPointError(
        f'{values} at step {step}'
        + (f', the gradient of {in_a_row} updates in a row' if in_a_row else '')
        + '. The checkpoints in MODEL_DIR are from before it; a lower '
        'LEARNING_RATE is the usual remedy, MAX_SKIPPED leaves such updates '
        'out.'
      )
    if not in_a_row:
      made.append(metrics)
  means = {k: float(np.mean([m[k] for m in made])) for k in window[0] if made}
  tokens = means.pop('tokens', 0.0) * len(made)
  if skipped:
    means['skipped'] = skipped
  return means, tokens


def describe(model_dir, state, frozen, mesh, examples) -> None:
  """Prints what runs, and saves versions beside the checkpoints."""
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  parts = [f'policy {size(state.params):,} parameters']
  for name in ('reference', 'judge'):
    params = getattr(frozen, name)
    if params is not None:
      parts.append(f'{name} {size(params):,}')
  shape = ' x '.join(f'{k} {v}' for k, v in mesh.shape.items())
  counts = ', '.join(f'{k} {v:,}' for k, v in examples.counts.items())
  progress.say(f'{", ".join(parts)}; mesh {shape}; {counts}')
  if jax.process_index() == 0:
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'seqio')
    versions = {p: importlib.metadata.version(p) for p in (*packages, 'numpy')}
    versions['commit'] = _commit()
    path = epath.Path(model_dir) / 'versions.json'
    path.write_text(json.dumps(versions, indent=1) + '\n')


def _commit(root: pathlib.Path = _ROOT) -> str | None:
  """Returns the commit that runs, or None if it is unknown.

  Args:
    root: Folder of the code: a checkout, or the files of a commit with the file
      COMMIT beside them, as launch/ ships them.
  """
  if (root / 'COMMIT').exists():
    return (root / 'COMMIT').read_text().strip()
  if not (root / '.git').exists():
    return None  # Any checkout around an installed package is another project.
  try:
    return subprocess.run(
      ['git', '-C', str(root), 'rev-parse', 'HEAD'],
      capture_output=True,
      check=True,
      text=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None
