"""Compares mathematical answers with math-verify, in a process of its own.

An answer such as 9^{9^{9^9}} computes in C code until memory or patience ends.
The time limit of math-verify is a Python signal handler, which does not
interrupt that and works in the main thread alone. So a second process, which
runs this file as a script, compares. It has a limit of memory, the kernel ends
it with an alarm when a comparison takes too long, and it is started again.
"""

import importlib.util
import json
import logging
import resource
import signal
import subprocess
import sys
import threading

_SECONDS = 5.0
_MEMORY = 2**32  # bytes of address space

_lock = threading.Lock()
_process: subprocess.Popen[str] | None = None


def check() -> None:
  """Raises a ValueError if math-verify is not installed."""
  if importlib.util.find_spec('math_verify') is None:
    raise ValueError(
      'Answers of mathematics are compared with the package math-verify: pip '
      "install 'ipo_md[math]'."
    )


def same(target: str, prediction: str, *, seconds: float = _SECONDS) -> bool:
  r"""Returns whether math-verify finds the same answer in two texts.

    same(r'\boxed{\frac12}', 'The answer is 0.5')  # True

  Args:
    target: A text with the correct answer.
    prediction: A text with another one, or with none.
    seconds: Time for the comparison. If it takes longer, the prediction is
      wrong.

  Raises:
    ValueError: math-verify is not installed, or does not start.
  """
  global _process
  check()
  with _lock:
    if _process is None or _process.poll() is not None:
      _process = _start()
    request = json.dumps([target, prediction, seconds])
    print(request, file=_process.stdin, flush=True)
    answer = _process.stdout.readline()
    if not answer:
      _process.communicate()  # It has ended.
    return answer == 'True\n'


def _start() -> subprocess.Popen[str]:
  process = subprocess.Popen(
    [sys.executable, '-P', __file__],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  if process.stdout.readline() != 'ready\n':
    process.communicate()
    raise ValueError('math-verify does not start: its message is above.')
  return process


def _serve() -> None:
  import math_verify

  resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
  logging.disable()  # It warns of the time limits that it does not have.
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  print('ready', flush=True)
  for line in sys.stdin:
    target, prediction, seconds = json.loads(line)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    parsed = [
      math_verify.parse(text.replace('°', r'^\circ'), parsing_timeout=None)
      for text in (target, prediction)
    ]
    equal = math_verify.verify(*parsed, timeout_seconds=None)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(bool(equal), flush=True)


if __name__ == '__main__':
  _serve()
