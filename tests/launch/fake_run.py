"""Stands in for `python -u -m ipo_md ...` in sweeps.

TAU is how good a policy is. In the folder of the sweep, a file break_NAME makes
a run fail, preempt_NAME makes it end without COMPLETED, and `slow` holds the
seconds that each run takes.
"""

import ast
import json
import pathlib
import sys
import time

given = dict(a[6:].split('=', 1) for a in sys.argv if a.startswith('--gin.'))
given = {k: ast.literal_eval(v) for k, v in given.items()}
folder = pathlib.Path(given['MODEL_DIR'])
folder.mkdir(parents=True, exist_ok=True)
with (folder / 'starts').open('a') as file:
  file.write('x')
print('step 1/2  loss 1.0', flush=True)
if (folder.parent / 'slow').exists():
  time.sleep(float((folder.parent / 'slow').read_text()))
if (folder.parent / f'break_{folder.name}').exists():
  print('It is broken.')
  sys.exit(3)
if 'POLICIES' in given:
  good, paths = [], {}
  for name, every in given['POLICIES'].items():
    one = isinstance(every, str)
    for seed, path in enumerate([every] if one else every):
      paths[name if one else f'{name}[{seed}]'] = path
  for path in paths.values():
    at = pathlib.Path(path)
    assert (at / 'COMPLETED').exists(), at
    good.append(float((at / 'good').read_text()))
  rate = [[0.5 + a - b for b in good] for a in good]
  interval = [[[r - 0.1, r + 0.1] for r in row] for row in rate]
  results = {
    'policies': list(paths),
    'judges': ['truth'],
    'prompts': 9,
    'win_rate': {'truth': rate},
    'interval': {'truth': interval},
  }
  (folder / 'results.json').write_text(json.dumps(results))
else:
  good = given.get('TAU', 0) + given.get('SEED', 0) / 100
  (folder / 'good').write_text(str(good))
if (folder.parent / f'preempt_{folder.name}').exists():
  (folder.parent / f'preempt_{folder.name}').unlink()
  sys.exit(0)
(folder / 'COMPLETED').write_text('1')
