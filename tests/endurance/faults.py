"""Kills runs at random, and checks that they lose nothing.

  python -m tests.endurance.faults DIR

Trains a micro online run once without a fault, and then repeatedly under
SIGKILL and SIGTERM at random moments to random processes, until --kills signals
have struck. The command ends with an error unless this holds for each run:

  the state (parameters and optimizer) equals, bit for bit, that of the run
    without a fault on as many processes and devices, and so do the metrics, of
    which readers use the last line of each step;
  in the history that leads to the state, each step has one batch, and every
    attempt had the same batch at that step;
  every checkpoint that exists after a fault is intact;
  SIGTERM to any process ends all of them with exit code 0, with one checkpoint
    at their common step and without COMPLETED.

Then each run without a fault continues in every other number of processes. Its
batches must equal those of the original number, and its metrics must be equal
up to the order of sums. Finally, one of two processes is suspended, and the
other one has to report that and end.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import time

from tests.endurance import local_runs

STEPS = 12
MORE_STEPS = 4
# Relative difference that float32 sums in another order make over MORE_STEPS
# updates of Adafactor.
TOLERANCE = 1e-5
HANG_SECONDS = 20  # less than the 30 s that Gloo waits
check = local_runs.check


def online(root: pathlib.Path, name: str, **changes) -> list[str]:
  """Returns the command line of the run, with changed bindings."""
  bindings = {
    'TRAIN_STEPS': STEPS,
    'BATCH_SIZE': 8,
    'LOG_PERIOD': 1,
    'EVAL_PERIOD': 4,
    'EVAL_EXAMPLES': 8,
    'EVAL_BATCH_SIZE': 8,
    'CHECKPOINT_PERIOD': 2,
    'MAX_NEW_TOKENS': 6,
    'TAU': 0.1,
    'INITIAL_CHECKPOINT_PATH': f"'{root / 'supervised'}'",
    'JUDGE_CHECKPOINT_PATH': f"'{root / 'supervised'}'",
    **{f'judge/models.T5.{k}': size for k, size in local_runs.SIZES.items()},
    'judge/models.T5.reward_head': False,
  }
  return local_runs.arguments(
    root / name,
    root / 'cache',
    'online judges/likelihood algorithms/ipo_md',
    **bindings | changes,
  )


def undisturbed(
  root: pathlib.Path, name: str, count: int, steps: int = STEPS
) -> local_runs.Run:
  """Runs without a fault in the folder `name`."""
  return local_runs.finished(
    online(root, name, TRAIN_STEPS=steps),
    count=count,
    devices=max(2, count),
    log=root / 'logs' / name,
  )


def disturbed(
  root: pathlib.Path,
  name: str,
  count: int,
  *,
  kills: int,
  seconds: float,
  rng: random.Random,
) -> tuple[list[local_runs.Run], list[signal.Signals]]:
  """Runs until the run is complete, while signals strike it.

  Args:
    root: Folder of the command.
    name: Name of the run.
    count: Number of processes.
    kills: Number of signals to send.
    seconds: Latest time of a signal after the start of an attempt.
    rng: Source of times, processes and signals.

  Returns:
    The attempts, and the signals that struck them.
  """
  attempts, faults = [], []
  while not (root / name / 'COMPLETED').exists():
    run = local_runs.Run(
      online(root, name),
      count=count,
      devices=max(2, count),
      log=root / 'logs' / f'{name}.{len(attempts)}',
    )
    attempts.append(run)
    fault = None
    if len(faults) < kills:
      run.wait(rng.uniform(0, seconds))
      victim = run.processes[rng.randrange(count)]
      if victim.exitcode is None:
        fault = rng.choice((signal.SIGTERM, signal.SIGKILL))
        os.kill(victim.pid, fault)
        faults.append(fault)
    check(run.wait(300), f'still running after 300 s: {run.all_said()}')
    check_attempt(root / name, run, fault)
  return attempts, faults


def check_attempt(
  model_dir: pathlib.Path, run: local_runs.Run, fault: int | None
) -> None:
  """Checks what an attempt has left behind."""
  from ipo_md.checkpoints import checksums

  said, folder = run.said(0), model_dir / 'checkpoints'
  check('damaged' not in said, run.all_said())
  steps = checksums.numbered(folder)
  for step in steps:
    bad = checksums.damaged_files(folder / str(step))
    check(not bad, f'{run.log}: {folder / str(step)}: {bad}')
  # A process that has not joined the others yet has nothing to save.
  early = fault == signal.SIGTERM and not any(run.batches())
  if fault != signal.SIGKILL and not early:
    check(not any(run.codes()), f'{run.codes()}: {run.all_said()}')
    if not (model_dir / 'COMPLETED').exists():
      text = f'Stopped by SIGTERM: step {steps[-1]} is saved'
      check(said.count(text) == 1, f'not {text!r}: {run.all_said()}')


def check_run(
  model_dir: pathlib.Path,
  attempts: list[local_runs.Run],
  original: pathlib.Path,
  reference: local_runs.Run,
) -> None:
  """Compares a run that was struck with the one that was not.

  Args:
    model_dir: MODEL_DIR of the struck run.
    attempts: Its attempts.
    original: MODEL_DIR of the run without a fault.
    reference: That run.
  """
  from ipo_md.core import metrics

  for index, known in enumerate(reference.batches()):
    known, needed = dict(known), STEPS
    for run in reversed(attempts):
      lines = run.batches()[index]
      steps = [step for step, _ in lines]
      for step, digest in lines:
        check(digest == known[step], f'{run.log}: another batch at step {step}')
      if needed - 1 in steps:
        unbroken = steps == list(range(steps[0], steps[-1] + 1))
        check(unbroken, f'{run.log}: the batches are those of steps {steps}')
        needed = steps[0]
    check(needed == 0, f'{model_dir}: no batch of step {needed - 1}')
  ours, theirs = (local_runs.state(d, STEPS) for d in (model_dir, original))
  check(ours.keys() == theirs.keys(), f'{model_dir}: other arrays')
  bad = [k for k in ours if ours[k].tobytes() != theirs[k].tobytes()]
  check(not bad, f'{model_dir}: other values of {bad}')
  ours, theirs = (metrics.read_metrics(str(d)) for d in (model_dir, original))
  check(ours == theirs, f'{model_dir}: other metrics')


def moved(root: pathlib.Path, counts: list[int]) -> None:
  """Continues each run in its own and in each other number of processes."""
  from ipo_md.core import metrics

  for source in counts:
    found = {}
    for count in sorted(counts, key=lambda count: count != source):
      name = f'{source}_continues_in_{count}'
      shutil.copytree(root / f'undisturbed_{source}', root / name)
      run = undisturbed(root, name, count, STEPS + MORE_STEPS)
      rows = dict(run.batches()[0])
      for step, digests in [one for some in run.batches() for one in some]:
        rows[step].update(digests)
      check(list(rows) == list(range(STEPS, STEPS + MORE_STEPS)), str(rows))
      found[count] = rows, metrics.read_metrics(str(root / name))
      check(found[count][0] == found[source][0], f'{name}: other batches')
      apart = max(
        abs(value - found[source][1][step][key]) / max(1, abs(value))
        for step, values in found[count][1].items()
        for key, value in values.items()
      )
      check(apart <= TOLERANCE, f'{name}: metrics are {apart:.1e} apart')
      if count != source:
        print(f'{source} -> {count} processes: {apart:.1e} apart', flush=True)


def hung(root: pathlib.Path) -> None:
  """Suspends one of two processes; the other one must report it and end."""
  changes = {'TRAIN_STEPS': 10**6, 'HANG_SECONDS': HANG_SECONDS}
  run = local_runs.Run(
    online(root, 'hung', **changes),
    count=2,
    devices=2,
    log=root / 'logs' / 'hung',
  )
  while not run.batches()[0] and None in run.codes():
    time.sleep(0.02)
  check(None in run.codes(), run.all_said())
  stopped, other = run.processes[1], run.processes[0]
  os.kill(stopped.pid, signal.SIGSTOP)
  began = time.monotonic()
  other.join(20 * HANG_SECONDS)
  seconds = time.monotonic() - began
  stopped.kill()
  check(other.exitcode == 1, f'{run.codes()}: {run.all_said()}')
  errors = pathlib.Path(f'{run.log}.0.errors').read_text()
  said = f'process 0 of 2: nothing has happened for {HANG_SECONDS} s'
  check(said in errors and 'loop.py' in errors, run.all_said())
  print(f'a suspended process was reported after {seconds:.0f} s', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('dir', type=pathlib.Path, help='new folder')
  parser.add_argument('--kills', type=int, default=60, help='number of signals')
  parser.add_argument(
    '--processes', default='1,2,4', help='numbers of processes'
  )
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  root = options.dir.resolve()
  local_runs.prepare(root)
  rng, start = random.Random(options.seed), time.monotonic()
  local_runs.finished(
    local_runs.arguments(
      root / 'supervised',
      root / 'cache',
      'supervised',
      TRAIN_STEPS=2,
      BATCH_SIZE=8,
      EVAL_EXAMPLES=8,
      EVAL_BATCH_SIZE=8,
    ),
    count=1,
    devices=2,
    log=root / 'logs' / 'supervised',
  )
  layouts = [int(count) for count in options.processes.split(',')]
  references, faults, runs = {}, [], 0
  while len(faults) < options.kills:
    count = layouts[runs % len(layouts)]
    name = f'undisturbed_{count}'
    if count not in references:
      undisturbed(root, f'compiled_{count}', count, 1)
      began = time.monotonic()
      run = undisturbed(root, name, count)
      references[count] = run, time.monotonic() - began
    reference, seconds = references[count]
    attempts, struck = disturbed(
      root,
      f'run_{runs}',
      count,
      kills=min(options.kills - len(faults), -(-options.kills // len(layouts))),
      seconds=seconds,
      rng=rng,
    )
    check_run(root / f'run_{runs}', attempts, root / name, reference)
    faults, runs = faults + struck, runs + 1
    print(
      f'run {runs}, {count} processes: struck {len(struck)} times, '
      f'{len(faults)} of {options.kills}; intact and the same.',
      flush=True,
    )
  print(
    f'{faults.count(signal.SIGKILL)} SIGKILLs and '
    f'{faults.count(signal.SIGTERM)} SIGTERMs in {runs} runs of '
    f'{options.processes} processes, '
    f'{time.monotonic() - start:.0f} s: no checkpoint was damaged, and states, '
    'metrics and batches equal those of the runs without a fault.',
    flush=True,
  )
  moved(root, list(references))
  hung(root)


if __name__ == '__main__':
  main()
