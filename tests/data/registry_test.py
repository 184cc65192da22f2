"""Tests of the look-up of tasks and of the import of their modules."""

import subprocess
import sys

import pytest

from ipo_md.data import registry
from ipo_md.data import vocabularies
from tests.data import hand_made

_TASKS = """
import seqio

seqio.TaskRegistry.add(
  '{name}_task',
  source=seqio.TextLineDataSource({{'train': 'lines'}}),
  preprocessors=[],
  output_features={{'inputs': seqio.Feature(seqio.ByteVocabulary(7))}},
)
"""


def test_misspelt_task():
  hand_made.supervised()
  with pytest.raises(ValueError, match='Nearest: supervised'):
    hand_made.load('supervisd')


def _write(tmp_path, monkeypatch, *names):
  monkeypatch.syspath_prepend(tmp_path)
  for name in names:
    (tmp_path / f'{name}.py').write_text(_TASKS.format(name=name))


def test_module_is_imported_first(tmp_path, monkeypatch):
  _write(tmp_path, monkeypatch, 'my_first', 'my_second', 'my_third')
  found = registry.find('my_first_task', module='my_first')
  assert found.name == 'my_first_task'
  registry.find('my_third_task', module=('my_second', 'my_third'))
  assert registry.find('my_second_task').name == 'my_second_task'


def test_vocabulary_of_a_module(tmp_path, monkeypatch):
  _write(tmp_path, monkeypatch, 'my_vocabulary')
  found = vocabularies.vocabulary(
    mixture_or_task_name='my_vocabulary_task', module='my_vocabulary'
  )
  assert found.vocab_size == 266


def test_given_vocabulary_needs_no_module():
  given = hand_made.VOCABULARY
  found = vocabularies.vocabulary(
    mixture_or_task_name='none', vocabulary=given, module='no_such_module'
  )
  assert found is given


@pytest.mark.parametrize(
  ('module', 'match'),
  [
    ('no_such_module', "MODULE 'no_such_module' cannot be imported: No module"),
    ('tasks.none', "MODULE 'tasks.none' cannot be imported"),
    ('tasks/xsum.py', "MODULE 'tasks/xsum.py' is not the name of a module"),
    ('.xsum', "MODULE '.xsum' is not the name of a module"),
    ('', "MODULE '' is not the name of a module"),
  ],
)
def test_module_that_cannot_be_imported(module, match):
  with pytest.raises(ValueError, match=match) as error:
    registry.find('xsum_prompts', module=module)
  assert '\n' not in str(error.value)


def test_the_package_does_not_import_tensorflow():
  code = (
    'import sys\n'
    'import ipo_md.data\n'
    'import ipo_md.data.preview\n'
    "print([m for m in ('seqio', 'tensorflow', 'tokenizers')\n"
    '       if m in sys.modules])\n'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout == '[]\n'
