"""The first program of a sandbox: takes its limits and executes another one.

`sandbox` gives this text to a Python inside of the sandbox, which has no other
module of this repository. The arguments are limits as NAME=NUMBER. Standard
input is a token in a line and the program. Standard output gets 'started', and
then the token if the program ran to its last line, or else what it raised.
"""

import os
import resource
import sys
import types

ROOT = '/jail'  # if the sandbox was made by root
REASON = 300  # bytes of a message
_NOBODY = 65534


def _main() -> None:
  token, _, program = sys.stdin.read().partition('\n')
  for name, number in [limit.split('=') for limit in sys.argv[1:]]:
    resource.setrlimit(getattr(resource, name), (int(number), int(number)))
  if os.geteuid() == 0:
    # The kernel does not count the processes of root, and makes no user
    # namespaces, which have their own mounts, in a changed root.
    os.chroot(ROOT)
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)
  os.chdir('/tmp')
  verdict = os.dup(1)
  null = os.open('/dev/null', os.O_RDWR)
  os.write(verdict, b'started\n')
  for standard in range(3):
    os.dup2(null, standard)
  module = sys.modules['program'] = types.ModuleType('program')
  try:
    exec(compile(program, 'program', 'exec'), module.__dict__)
    said = token
  except BaseException as error:
    said = f'{type(error).__name__}: {error}'
  os.write(verdict, said.encode(errors='replace')[:REASON])
  os._exit(0)  # without the threads and exit functions of the program


if __name__ == '__main__':
  _main()
