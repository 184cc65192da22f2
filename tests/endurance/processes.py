"""Runs the whole chain in 1, 2 and 4 processes, and compares the results.

  python -m tests.endurance.processes DIR

Each stage of the chain runs at a very small size in each number of processes,
which share --devices virtual devices. All start from the checkpoints of the
first layout. The command prints how far the results of each layout are from
those of the first one. It ends with an error if the difference is larger than
the order of sums explains, if any process but process 0 prints, if metrics are
written twice, or if a process does not write its part of a checkpoint.
"""

import argparse
import json
import pathlib

from tests.endurance import local_runs

STEPS = 3
# Relative difference that float32 sums in another order make over STEPS updates
# of Adafactor.
TOLERANCE = 1e-5
check = local_runs.check


def stages(
  model_dir: pathlib.Path, first: pathlib.Path, cache: pathlib.Path
) -> dict[str, list[str]]:
  """Returns the command line of each stage.

  Args:
    model_dir: Folder of this layout.
    first: Folder of the first layout, from whose checkpoints all start.
    cache: CACHE_DIR of the runs.
  """
  judge_sizes = {
    f'judge/models.T5.{name}': size for name, size in local_runs.SIZES.items()
  }
  training = {
    'TRAIN_STEPS': STEPS,
    'BATCH_SIZE': 8,
    'LOG_PERIOD': 1,
    'EVAL_EXAMPLES': 16,
    'EVAL_BATCH_SIZE': 8,
  }
  supervised = f"'{first / 'supervised'}'"
  judge = f"'{first / 'judge'}'"

  def stage(name, files, **bindings):
    return local_runs.arguments(model_dir / name, cache, files, **bindings)

  return {
    'supervised': stage('supervised', 'supervised', **training),
    'judge': stage(
      'judge',
      'judge judges/likelihood',
      INITIAL_CHECKPOINT_PATH=supervised,
      **training,
      **judge_sizes,
    ),
    'online': stage(
      'online',
      'online judges/likelihood algorithms/ipo_md',
      INITIAL_CHECKPOINT_PATH=supervised,
      JUDGE_CHECKPOINT_PATH=judge,
      MAX_NEW_TOKENS=6,
      TAU=0.1,
      **training,
      **judge_sizes,
    ),
    # Completions come from the data, so losses do not depend on samples.
    'offline': stage(
      'offline',
      'offline judges/likelihood algorithms/ipo',
      INITIAL_CHECKPOINT_PATH=supervised,
      JUDGE_CHECKPOINT_PATH=judge,
      MAX_NEW_TOKENS=6,
      TAU=0.1,
      **training,
      **judge_sizes,
    ),
    'side_by_side': stage(
      'side_by_side',
      'side_by_side_mini_tldr',
      POLICIES=f"{{'supervised': {supervised}, 'ipo': '{first / 'online'}'}}",
      REFERENCE_CHECKPOINT_PATH=supervised,
      PREFERENCE_MODEL_CHECKPOINT_PATH=judge,
      REWARD_MODEL_CHECKPOINT_PATH=judge,
      AGREEMENT='None',
      MAX_NEW_TOKENS=6,
      EVAL_EXAMPLES=16,
      EVAL_BATCH_SIZE=8,
      **judge_sizes,
    ),
    'infer': stage(
      'infer',
      'infer',
      CHECKPOINT_PATH=f"'{first / 'online'}'",
      REFERENCE_CHECKPOINT_PATH=supervised,
      PROMPTS_FILE=f"'{cache / 'prompts.txt'}'",
      PROMPT_TASK="'mini_tldr_prompts'",
      MAX_NEW_TOKENS=6,
      BATCH_SIZE=8,
    ),
  }


def numbers(model_dir: pathlib.Path) -> dict[str, float]:
  """Returns every number that a stage wrote, by name.

  A text becomes part of a name, so that layouts with other texts differ.
  """
  found = {}

  def add(name, value):
    if isinstance(value, dict):
      for key, inner in value.items():
        add(f'{name}/{key}', inner)
    elif isinstance(value, list):
      for index, inner in enumerate(value):
        add(f'{name}/{index}', inner)
    elif isinstance(value, bool | int | float):
      found[name] = float(value)
    else:
      found[f'{name} = {value!r}'] = 0.0

  for path in sorted(model_dir.glob('*.json*')):
    if path.name not in ('performance.jsonl', 'versions.json'):
      for number, line in enumerate(path.read_text().splitlines()):
        if path.suffix == '.jsonl':
          add(f'{path.name}/{number}', json.loads(line))
      if path.suffix == '.json':
        add(path.name, json.loads(path.read_text()))
  return found


def difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
  """Returns the largest difference, relative to the value or to 1."""
  names = ours.keys() ^ theirs.keys()
  check(not names, f'only one of two layouts has {sorted(names)[:4]}')
  return max(
    abs(ours[name] - theirs[name]) / max(1, abs(theirs[name]))
    for name in theirs
  )


def check_once(run: local_runs.Run, model_dir: pathlib.Path) -> None:
  """Checks that only process 0 prints, and each line of metrics is unique."""
  for index in range(1, len(run.processes)):
    check(not run.said(index), f'process {index} prints: {run.all_said()}')
  metrics = model_dir / 'metrics.jsonl'
  if metrics.exists():
    lines = metrics.read_text().splitlines()
    check(len(lines) == len(set(lines)), f'{metrics} has duplicate lines')
    last = model_dir / 'checkpoints' / str(STEPS) / 'default'
    parts = sorted(p.name for p in last.glob('ocdbt.process_*'))
    expected = [f'ocdbt.process_{i}' for i in range(len(run.processes))]
    check(parts == expected, f'{last}: {parts}')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('dir', type=pathlib.Path, help='new folder')
  parser.add_argument(
    '--processes', default='1,2,4', help='numbers of processes'
  )
  parser.add_argument(
    '--devices', type=int, default=8, help='number of devices'
  )
  parser.add_argument('--last', default='infer', help='last stage to run')
  options = parser.parse_args()
  root = options.dir.resolve()
  local_runs.prepare(root)
  (root / 'cache').mkdir(exist_ok=True)
  prompts = [f'the cat number {n} sat on the mat' for n in range(11)]
  (root / 'cache' / 'prompts.txt').write_text('\n'.join(prompts) + '\n')
  layouts = [int(count) for count in options.processes.split(',')]
  first = root / f'processes_{layouts[0]}'
  for count in layouts:
    folder = root / f'processes_{count}'
    for name, args in stages(folder, first, root / 'cache').items():
      log = root / 'logs' / f'{count}_{name}'
      run = local_runs.finished(
        args, count=count, devices=options.devices, log=log
      )
      check((folder / name / 'COMPLETED').exists(), f'{log} is not complete')
      check_once(run, folder / name)
      if folder != first:
        apart = difference(numbers(folder / name), numbers(first / name))
        print(f'{count} processes, {name}: {apart:.1e} apart', flush=True)
        check(apart <= TOLERANCE, f'{folder / name} and {first / name}')
      if name == options.last:
        break


if __name__ == '__main__':
  main()
