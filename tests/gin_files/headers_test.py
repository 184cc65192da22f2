"""Tests the headers of all gin files."""

import re

import pytest

from tests.gin_files import gin_resolve

_GIN = gin_resolve.ROOT / 'gin'


@pytest.mark.parametrize(
  'path', sorted(_GIN.rglob('*.gin')), ids=lambda p: f'{p.parent.name}/{p.stem}'
)
def test_header_names_requirements_and_existing_macros(path):
  header, _, body = path.read_text().partition('\nfrom __gin__')
  included = re.findall(r"^include '(.*)'", body, re.M)
  assert header.startswith('# ')
  assert 'Required:' in header or any(
    'Required:' in (gin_resolve.ROOT / name).read_text() for name in included
  )
  known = set()
  for other in _GIN.rglob('*.gin'):
    text = re.sub('#.*', '', other.read_text())
    known |= set(re.findall(r'%(\w+)', text))
    known |= set(re.findall(r'^([A-Z]\w+) =', text, re.M))
  listed = re.findall(
    r'(?s)(?:Required|Commonly overridden):(.*?)(?=[A-Z][a-z ]+:|\Z)',
    header.replace('\n#', ' '),
  )
  words = set(re.findall(r'\b[A-Z][A-Z_]{2,}\b', ' '.join(listed)))
  assert words - {'CPU', 'EOS', 'JSON'} <= known


def test_shared_files_are_included():
  """A file that declares itself shared is included by another file."""
  included = {
    name
    for path in _GIN.rglob('*.gin')
    for name in re.findall(r"^include '(.*)'", path.read_text(), re.M)
  }
  complete = set(gin_resolve.complete_files(_GIN))
  shared = {
    str(path.relative_to(gin_resolve.ROOT))
    for path in set(_GIN.rglob('*.gin')) - complete
  }
  assert shared
  assert shared <= included
