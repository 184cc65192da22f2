"""Parts of a run on disk, so that an interrupted run does not do them again.

  FOLDER/KIND/NAME-DIGEST.jsonl   a line for each row

DIGEST is of all that a part was made of, its recipe: a part whose recipe has
changed is not found, and is made anew. A file is there whole or not at all.
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
  """A folder of parts. Process 0 writes.

  Args:
    path: of the folder, local or a bucket's.
  """

  def __init__(self, path: str):
    self._path = epath.Path(path)

  def get(self, kind: str, name: str, recipe: Recipe) -> list[Any] | None:
    """The rows of a part; None if it is not there.

    Args:
      kind: of the part, a folder.
      name: of the part, to be read.
      recipe: all that it is made of, as JSON.
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
  """Of anything that JSON can say."""
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
