"""The documentation builds, and what it names exists."""

import fnmatch
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / 'docs' / 'notebooks' / 'quickstart.ipynb'
PAGES = [
  *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md')),
  *sorted((ROOT / 'docs').glob('*.md')),
]
# Pages that show files that a reader is to write.
_EXAMPLES = ('exponential', 'shorter', 'headlines', '_mini', 'NAME')
_PATH = re.compile(
  r'(?<![\w/.$:])((?:ipo_md|tests|gin|tasks|launch|docs)/[\w./-]*\w)'
)
_TEST = re.compile(r'(tests/[\w/]+\.py)::(test_[\w*]+)')


def installed(*names: str) -> bool:
  return all(importlib.util.find_spec(name) for name in names)


@pytest.mark.skipif(
  not installed('mkdocs', 'material', 'mkdocstrings'),
  reason='The extra `docs` (mkdocs-material, mkdocstrings) is not installed.',
)
def test_the_site_builds_without_a_warning(tmp_path):
  """Every link, anchor and page of the API reference resolves."""
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', tmp_path],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  page = (tmp_path / 'api' / 'algorithms.html').read_text()
  assert 'id="ipo_md.algorithms.losses.ipo"' in page


def test_every_wing_has_a_page_of_the_reference():
  wings = {path.parent.name for path in ROOT.glob('ipo_md/*/__init__.py')}
  assert {path.stem for path in ROOT.glob('docs/api/*.md')} == wings


@pytest.mark.skipif(
  not installed('nbclient', 'nbformat', 'ipykernel'),
  reason='The extra `docs` (nbclient, nbformat, ipykernel) is not installed.',
)
def test_the_notebook_runs(monkeypatch):
  """Its own assertions hold, and no outputs are committed."""
  import nbclient
  import nbformat

  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  assert not any(cell.get('outputs') for cell in notebook.cells)
  nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name='python3',
    resources={'metadata': {'path': str(ROOT)}},
  ).execute()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_paths_exist(page):
  """A file that a page names is there; a pattern matches one."""
  missing = [
    path
    for path in set(_PATH.findall(page.read_text()))
    if not any(example in path for example in _EXAMPLES)
    and not (ROOT / path).exists()
    and not list((ROOT / path).parent.glob(f'{pathlib.Path(path).name}*'))
  ]
  assert not missing


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page):
  for path, pattern in _TEST.findall(page.read_text()):
    defined = re.findall(r'^def (test_\w+)', (ROOT / path).read_text(), re.M)
    assert fnmatch.filter(defined, pattern), f'{path}::{pattern}'


def test_links_of_the_readme_resolve():
  """The site does not check them."""
  text = (ROOT / 'README.md').read_text()
  targets = re.findall(r'\]\(([^)#\s]+)', text) + re.findall(
    r'src="([^"]+)"', text
  )
  local = [target for target in targets if '://' not in target]
  assert local
  assert not [target for target in local if not (ROOT / target).exists()]


def test_the_readme_is_short_and_its_pictures_are_light():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 150
  for path in (ROOT / 'docs' / 'images').iterdir():
    assert path.stat().st_size < 300_000, path.name
