"""Stores parts of a run, so that an interrupted run does not repeat them.

  FOLDER/KIND/NAME-DIGEST.jsonl   a line for each row

DIGEST hashes the recipe of a part, which is everything that the part depends
on. If the recipe changes, the part is not found and is made again. Files are
written atomically.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import json
import re
from typing import Any

from etils import epath
import jax

Recipe = Mapping[str, Any]


class Folder:
  """A folder of parts, written by process 0.

  Args:
    path: Path of the folder, local or in a bucket.
  """

  def __init__(self, path: str):
    self._path = epath.Path(path)

  def get(self, kind: str, name: str, recipe: Recipe) -> list[Any] | None:
    """Returns the rows of a part, or None if it does not exist.

    Args:
      kind: Kind of the part, the name of a subfolder.
      name: Readable name of the part.
      recipe: Everything that the part depends on, as JSON.
    """
    path = self._file(kind, name, recipe)
    if not path.exists():
      return None
    return [json.loads(line) for line in path.read_text().splitlines()]

  def put(
    self, kind: str, name: str, recipe: Recipe, rows: Sequence[Any]
  ) -> None:
    """Writes a part."""
    if jax.process_index():
      return
    path = self._file(kind, name, recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / (path.name + '.partial')
    partial.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    partial.replace(path)

  def _file(self, kind: str, name: str, recipe: Recipe) -> epath.Path:
    plain = re.sub(r'[^\w.=-]+', '_', name, flags=re.ASCII)[:100]
    return self._path / kind / f'{plain}-{digest(recipe)}.jsonl'


def digest(content: Any) -> str:
  """Hashes any value that JSON can express."""
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
