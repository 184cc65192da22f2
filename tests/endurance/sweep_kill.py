"""Checks that a sweep which is killed and repeated gives the same results.

  python -m tests.endurance.sweep_kill [SPEC] [--kills=4] [--within=90]
    [--seed=0] [--folder=FOLDER]

Runs SPEC (tests/testdata/sweep.toml) without interruption, and again with
SIGKILL to the sweep at random times, every other time to its runs as well.
After the last kill, the sweep runs to its end. The table, the numbers and every
completion and judgement of the two must be equal, byte for byte.
"""

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import tempfile

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SAME = (
  'table.txt',
  'report/sweep.json',
  'report/results.json',
  'report/completions.jsonl',
)


def start(spec: str, out: pathlib.Path) -> subprocess.Popen:
  """Starts a sweep."""
  return subprocess.Popen(
    [sys.executable, str(_ROOT / 'launch/sweep.py'), spec, str(out)]
  )


def kill(process: subprocess.Popen, runs_too: bool) -> None:
  """Sends SIGKILL to a sweep, and optionally to the runs that it started."""
  children = pathlib.Path(
    f'/proc/{process.pid}/task/{process.pid}/children'
  ).read_text()
  process.kill()
  process.wait()
  for child in map(int, children.split()) if runs_too else ():
    subprocess.run(
      ['kill', f'-{signal.SIGKILL.value}', str(child)], check=False
    )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('spec', nargs='?', default='tests/testdata/sweep.toml')
  parser.add_argument('--kills', type=int, default=4)
  parser.add_argument(
    '--within', type=float, default=90, help='latest time of a kill, in seconds'
  )
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--folder', type=pathlib.Path)
  args = parser.parse_args()
  folder = args.folder or pathlib.Path(tempfile.mkdtemp())
  straight, killed = folder / 'straight', folder / 'killed'
  if start(args.spec, straight).wait():
    return 1
  rng = random.Random(args.seed)
  kills = 0
  while True:
    process = start(args.spec, killed)
    try:
      limit = rng.uniform(0, args.within) if kills < args.kills else None
      code = process.wait(limit)
    except subprocess.TimeoutExpired:
      kill(process, runs_too=kills % 2 == 0)
      kills += 1
      print(f'killed after {limit:.1f} s', flush=True)
      continue
    if code:
      return code
    break
  different = [
    name
    for name in _SAME
    if (straight / name).read_bytes() != (killed / name).read_bytes()
  ]
  print(f'{kills} kills; different: {different or "nothing"}')
  print((killed / 'table.txt').read_text())
  return len(different) or kills < args.kills


if __name__ == '__main__':
  sys.exit(main())
