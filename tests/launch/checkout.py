"""Makes a small checkout for tests that call the doors of launch/."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parents[2]
FAKES = ROOT / 'tests' / 'testdata' / 'bin'
_FILES = (
  'launch/*.py',
  'launch/google_cloud/*',
  'ipo_md/__init__.py',
  'ipo_md/core/__init__.py',
  'ipo_md/core/tpu_slices.py',
)


def make(root: pathlib.Path, replaced: dict[str, str]) -> None:
  """Copies launch/ and the table of slices into `root`.

  Args:
    root: New folder.
    replaced: Lines to shorten waiting times, each of which has to be in one of
      the files.
  """
  missing = set(replaced)
  for pattern in _FILES:
    for source in ROOT.glob(pattern):
      if source.is_dir():
        continue
      text = source.read_text()
      for old, new in replaced.items():
        if old in text:
          missing.discard(old)
          text = text.replace(old, new)
      target = root / source.relative_to(ROOT)
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_text(text)
  assert not missing, missing


def commit(root: pathlib.Path) -> str:
  """Commits all files of `root` and returns the hash of the commit."""
  identity = ('-c', 'user.name=test', '-c', 'user.email=test@localhost')
  git = ['git', '-C', root, *identity]
  for words in (
    ['init', '--quiet'],
    ['add', '.'],
    ['commit', '--quiet', '--message=all'],
  ):
    subprocess.run([*git, *words], check=True)
  head = subprocess.run(
    [*git, 'rev-parse', 'HEAD'], check=True, capture_output=True, text=True
  )
  return head.stdout.strip()
