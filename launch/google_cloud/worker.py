"""Runs a command on one worker of a slice, and reports whether it is done.

  python launch/google_cloud/worker.py -- python -m ipo_md --gin_file=...

A run that saves on SIGTERM exits with 0, which a cluster takes for success.
Here a run that has a MODEL_DIR is done only if MODEL_DIR/COMPLETED exists. The
exit code is

  0      if the run is done;
  42     if the run is to be started again: a signal stopped it before its end,
         or it failed after it had saved a new checkpoint;
  other  if the run failed and would fail again: the command's own exit code.

Each attempt that fails with 42 has saved more than the one before, so there is
no endless loop. XPK restarts a workload on 42 by default.

This file uses the standard library only and supports every Python 3, because it
runs before the environment is installed.
"""

import argparse
import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

AGAIN = 42
_REPORT_PERIOD = 30  # seconds
_ENVIRONMENT = ['bash', '-c', 'source launch/setup.sh && exec "$@"', 'setup']

# Prints what a run left in its MODEL_DIR. A run with a config.gin writes
# COMPLETED at its end; a run without one (convert, preview) is done when it
# exits with 0.
_LOOK = """
import json, sys
from etils import epath
model_dir = epath.Path(sys.argv[1])
saved = model_dir / 'checkpoints'
steps = [p.name for p in saved.iterdir()] if saved.exists() else []
print(json.dumps({
  'claimed': (model_dir / 'config.gin').exists(),
  'completed': (model_dir / 'COMPLETED').exists(),
  'step': max([int(s) for s in steps if s.isdigit()], default=-1),
}))
"""


def model_dir(command):
  """Returns MODEL_DIR as the last binding of a command sets it, or None.

  A path needs no quotes in --gin.MODEL_DIR=gs://NAME/FOLDER.
  """
  found = None
  pattern = r'(?:--?(?:gin\.|gin_bindings=))?MODEL_DIR *= *(.*)'
  for word in command:
    if match := re.fullmatch(pattern, word, re.DOTALL):
      found = match.group(1).strip()
      with contextlib.suppress(SyntaxError, ValueError):
        found = ast.literal_eval(found)
  return found if isinstance(found, str) else None


def look(directory, environment, output):
  """Returns what is in MODEL_DIR, or None if it is not set or not readable."""
  if directory is None:
    return None
  python = 'python' if environment else sys.executable
  done = subprocess.run(
    [*environment, python, '-c', _LOOK, directory],
    stdout=subprocess.PIPE,
    stderr=output,
  )
  if done.returncode:
    return None
  return json.loads(done.stdout.decode().splitlines()[-1])


def verdict(code, stopped, before, after, directory):
  """Returns the exit code of this attempt, as this file's docstring defines it.

  Args:
    code: Exit code of the command, or minus the signal that ended it.
    stopped: Whether this worker was told to stop.
    before: Result of `look` before the command ran.
    after: Result of `look` after the command ran.
    directory: MODEL_DIR, or None.
  """
  code = 128 - code if code < 0 else code
  if code == 0 and after is None and directory is not None:
    return AGAIN  # It may be done: then the next attempt ends at once.
  if code == 0 and (after is None or not after['claimed']):
    return AGAIN if stopped else 0
  if code == 0:
    return 0 if after['completed'] else AGAIN
  if before and after and after['completed'] and not before['completed']:
    return 0
  if stopped:
    return AGAIN
  newer = before and after and after['step'] > before['step']
  return AGAIN if newer else code


class Reporter:
  """Copies the log and the state of this worker to a folder of the bucket.

    FOLDER/HOST.log    what the command printed
    FOLDER/HOST.state  "HOST running BEAT" or "HOST exited CODE"

  Args:
    folder: Folder in the bucket.
    host: Name of this worker.
    log: Local file that the command prints to.
  """

  def __init__(self, folder, host, log):
    self._folder, self._host, self._log = folder, host, log
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _run(self):
    beat = 0
    while not self._ended.wait(_REPORT_PERIOD):
      beat += 1
      self._send(f'running {beat}')

  def _send(self, state):
    """Sends one report. It may fail, because the next one includes it all."""
    copy = ['gcloud', 'storage', 'cp', '--quiet']
    target, text = f'{self._folder}/{self._host}', f'{self._host} {state}\n'
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    subprocess.run([*copy, self._log, f'{target}.log'], **quiet)
    done = subprocess.run(
      [*copy, '-', f'{target}.state'], input=text.encode(), **quiet
    )
    return done.returncode == 0

  def close(self, code):
    """Sends the last report, which matters most, for up to five minutes."""
    self._ended.set()
    self._thread.join()
    for _ in range(10):
      if self._send(f'exited {code}'):
        return
      time.sleep(_REPORT_PERIOD)


def run(command, environment, output, patience):
  """Runs the command to its end and returns the exit code of this attempt.

  Args:
    command: Words of the command.
    environment: Words to put before it, which set up its environment.
    output: File that it prints to, or None for the standard output.
    patience: Time that process 0 has to write COMPLETED after this worker's
      process has ended, in seconds.
  """
  stopped, children = [], []

  def stop(signum, frame):
    stopped.append(signum)
    for child in children:
      child.send_signal(signal.SIGTERM)

  signal.signal(signal.SIGTERM, stop)
  signal.signal(signal.SIGINT, stop)
  directory = model_dir(command)
  before = look(directory, environment, output)
  if stopped:
    return AGAIN
  children.append(
    subprocess.Popen(
      [*environment, *command], stdout=output, stderr=subprocess.STDOUT
    )
  )
  code = children[0].wait()
  until = time.monotonic() + patience
  while True:
    after = look(directory, environment, output)
    unknown = after is None and directory is not None
    awaited = after and after['claimed'] and not after['completed']
    waiting = not stopped and (unknown or (code == 0 and awaited))
    if not waiting or time.monotonic() > until:
      return verdict(code, bool(stopped), before, after, directory)
    time.sleep(min(5, patience))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--setup',
    action='store_true',
    help='run the command in the environment of launch/setup.sh',
  )
  parser.add_argument('--report', help='folder in the bucket for log and state')
  parser.add_argument('--host', help='name of this worker in the report')
  parser.add_argument(
    '--patience',
    type=float,
    default=60,
    help='seconds to wait for COMPLETED after the command has ended',
  )
  parser.add_argument('command', nargs='+')
  args = parser.parse_args()
  environment = _ENVIRONMENT if args.setup else []
  if args.report is None:
    sys.exit(run(args.command, environment, None, args.patience))
  log = os.path.abspath('../log')
  with open(log, 'wb') as output:
    reporter = Reporter(args.report, args.host, log)
    code = run(args.command, environment, output, args.patience)
  reporter.close(code)
  sys.exit(code)


if __name__ == '__main__':
  main()
