"""Makes the table of docs/pods.md by compiling for TPU slices.

  python tests/benchmarks/pods.py --folder=/tmp/pods                 # all rows
  python tests/benchmarks/pods.py --folder=/tmp/pods --only v5e_4x4

A row takes three to five CPU-minutes and 4 to 6 GB, and needs no TPU. Rows that
exist in the folder are not compiled again. The table lists all existing rows.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parent.parent.parent
T5 = ('models/t5_1_1_large', 'models/judge_t5_1_1_xl', 'judges/comparator')
MISTRAL = ('models/mistral_7b', 'judges/likelihood')
MIXTRAL = ('models/mixtral_8x7b', 'judges/likelihood')

# name: gin files besides the run's, algorithm, topology, MESH_SHAPE, BATCH_SIZE
# and optional bindings
CASES = {
  'v5e_4x4': (T5, 'ipo', 'v5e:4x4', (1, 16, 1), 32),
  'v4_4x4x4': (T5, 'ipo', 'v4:4x4x4', (1, 32, 2), 32),
  'v5e_4x4_ipo_md': (T5, 'ipo_md', 'v5e:4x4', (1, 16, 1), 32),
  'v5e_2x4': (T5, 'ipo', 'v5e:2x4', (1, 8, 1), 32),
  'v5e_2x4_in_two': (
    *(T5, 'ipo', 'v5e:2x4', (1, 8, 1), 32),
    {'MICROBATCHES': 2},
  ),
  'v5e_16x16': (T5, 'ipo', 'v5e:16x16', (1, 256, 1), 256),
  'v5e_2_slices': (T5, 'ipo', 'v5e:4x4', (2, 16, 1), 32, {'NUM_SLICES': 2}),
  'v5p_2x2x4': (T5, 'ipo', 'v5p:2x2x4', (1, 16, 1), 32),
  'v6e_4x4': (T5, 'ipo', 'v6e:4x4', (1, 16, 1), 32),
  'mistral_v5e_8x8': (
    *(MISTRAL, 'ipo', 'v5e:8x8', (1, 16, 4), 64),
    {'REMAT_POLICY': "'full'"},
  ),
  'mistral_v5e_8x8_int8': (
    *(MISTRAL, 'ipo', 'v5e:8x8', (1, 16, 4), 64),
    {'REMAT_POLICY': "'full'", 'INT8_SAMPLING': True},
  ),
  'mixtral_v5p_4x4x4': (
    *(MIXTRAL, 'ipo', 'v5p:4x4x4', (1, 16, 4), 64),
    {'REMAT_POLICY': "'full'"},
  ),
}


def command(name: str, folder: pathlib.Path) -> list[str]:
  """Returns the command that compiles a row."""
  files, algorithm, topology, mesh_shape, batch_size, *others = CASES[name]
  models = [f for f in files if f.startswith('models/')]
  judge = [f for f in files if f.startswith('judges/')]
  order = ['runs/online', *models, 'tasks/tldr', *judge]
  order += [f'algorithms/{algorithm}', 'runs/precompile']
  bindings = {
    'MODEL_DIR': f"'{folder / name}'",
    'TOPOLOGY': f"'{topology}'",
    'MESH_SHAPE': mesh_shape,
    'BATCH_SIZE': batch_size,
  }
  for more in others:
    bindings |= more
  return [
    *(sys.executable, '-m', 'ipo_md'),
    *(f'--gin_file=gin/{name}.gin' for name in order),
    *(f'--gin.{key}={value}' for key, value in bindings.items()),
  ]


def row(name: str, report: dict) -> str:
  """Renders a row of the table."""
  gib = lambda key: f'{report["hbm_bytes"].get(key, 0) / 2**30:.1f}'
  mesh = ', '.join(str(size) for size in report['mesh'].values())
  cells = [
    name,
    f'({mesh})',
    str(report['batch_size']),
    f'{gib("arguments")} + {gib("temporaries")} = {gib("peak")} of '
    f'{gib("chip")}',
  ]
  if report['fits']:
    decode = report['decode']
    gathers = sum(
      c['bytes']
      for c in report['collectives']
      if c['in_decode_loop'] and c['kind'] == 'all-gather'
    )
    more_than = '> ' if report['kernels_without_estimate'] else ''
    cells += [
      f'{more_than}{1e3 * report["step_seconds"]:.0f}',
      f'{1e3 * report["network_seconds"]:.0f}',
      f'{100 * report["utilisation"]:.0f} %' if not more_than else '',
      f'{more_than}{decode["cycles_per_token"] / 1e6:.2f} M, '
      f'{more_than}{decode["over_bound"]:.1f} x bound',
      f'{gathers / decode["tokens"] / 1024:.1f}',
    ]
  else:
    over = report['exceeds_by'] / 2**30
    cells += [f'does not fit, by {over:.1f} GiB', *[''] * 4]
  cells.append(
    f'{report["compile_cpu_seconds"]:.0f} CPU-s, '
    f'{report["host_bytes"] / 2**30:.1f} GiB'
  )
  return '| ' + ' | '.join(cells) + ' |'


def main() -> None:
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument('--folder', type=pathlib.Path, required=True)
  flags.add_argument('--only', nargs='*', choices=CASES, default=list(CASES))
  args = flags.parse_args()
  for name in args.only:
    if not (args.folder / name / 'precompile.json').exists():
      subprocess.run(
        command(name, args.folder),
        cwd=_ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        check=False,
      )
  print(
    '| case | mesh | batch | HBM of a chip, GiB | step, ms | network, ms | of '
    'matmul rate | decode cycles a token | gathered a token, KiB | compile |\n'
    + '|---' * 10
    + '|'
  )
  for name in CASES:
    path = args.folder / name / 'precompile.json'
    if path.exists():
      print(row(name, json.loads(path.read_text())))


if __name__ == '__main__':
  main()
