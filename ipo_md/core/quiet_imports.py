"""Drops what TensorFlow logs about devices while it is imported.

TensorFlow reads data here and has nothing to say about devices, but each of its
libraries writes lines such as these before TF_CPP_MIN_LOG_LEVEL has an effect:

  WARNING: All log messages before absl::InitializeLog() is called are ...
  I0000 00:00:1795880448.554563 cudart_stub.cc:31] Could not find cuda drivers
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import importlib.abc
import importlib.machinery
import os
import re
import sys
import tempfile
import types

_NAMES = ('tensorflow', 'tensorflow_text')
_DROPPED = re.compile(
  rb'^(?:I[0-9]{4} [0-9:. ]+.*|WARNING: All log messages before absl::.*'
  rb'|normalizer\.cc\([0-9]+\) LOG\(INFO\).*)\n?',
  re.MULTILINE,
)


def install() -> None:
  """Makes later imports of TensorFlow quiet. Warnings and errors stay."""
  if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
  """Finds the modules as Python does, and wraps how they are executed."""

  def find_spec(
    self,
    fullname: str,
    path: Sequence[str] | None,
    target: types.ModuleType | None = None,
  ) -> importlib.machinery.ModuleSpec | None:
    if fullname not in _NAMES:
      return None
    spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
    if spec is not None and spec.loader is not None:
      execute = spec.loader.exec_module

      def quietly(module: types.ModuleType) -> None:
        with quiet():
          execute(module)

      spec.loader.exec_module = quietly  # pyright: ignore[reportAttributeAccessIssue] (loaders allow it)
    return spec


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Drops such lines, and SentencePiece's, from what a block writes to stderr.

  The rest is written when the block ends.
  """
  sys.stderr.flush()
  before = os.dup(2)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(before, 2)
      os.close(before)
      held.seek(0)
      os.write(2, _DROPPED.sub(b'', held.read()))
