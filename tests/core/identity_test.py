"""Which inputs a run has, and whether a change of their content is seen."""

import os
import pathlib
import shutil
import sys

from etils import epath
import gin
import numpy as np
import pytest

from ipo_md.core import gin_config
from ipo_md.core import identity
from ipo_md.core import model_dir
from ipo_md.core import private_apis

_ROOT = pathlib.Path(__file__).parents[2]
SUPERVISED = (
  'gin/runs/supervised.gin',
  'gin/models/decoder_tiny.gin',
  'gin/tasks/preference_files.gin',
)


@pytest.fixture(name='parse')
def parse_fixture(monkeypatch):
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  gin.clear_config()
  gin.add_config_file_search_path(str(_ROOT))

  def parse(files, **bindings):
    gin.clear_config()
    gin_config.parse(files, [f'{k} = {v}' for k, v in bindings.items()])

  yield parse
  gin.clear_config()


@pytest.fixture(name='folder')
def folder_fixture(tmp_path):
  """The files of a supervised run, and of its own tokenizer."""
  for name in ('train.jsonl', 'valid.jsonl', 'tokenizer.json'):
    (tmp_path / name).write_text('{}\n')
  (tmp_path / 'vocabulary.gin').write_text(
    'from __gin__ import dynamic_registration\n'
    'from ipo_md import data\n'
    'VOCABULARY = @data.tokenizer_vocabulary()\n'
    'data.tokenizer_vocabulary.path = %TOKENIZER_PATH\n'
    'data.tokenizer_vocabulary.eos_id = %EOS_ID\n'
  )
  return tmp_path


def supervised(parse, folder, *overlays, **changes):
  files = [*SUPERVISED, str(folder / 'vocabulary.gin'), *map(str, overlays)]
  bindings = {
    'MODEL_DIR': "'/x'",
    'TRAIN_STEPS': 1,
    'BATCH_SIZE': 8,
    'DROPOUT_RATE': 0.0,
    'TASK_FEATURE_LENGTHS': "{'inputs': 8, 'targets': 8}",
    'TRAIN_FILE': repr(str(folder / 'train.jsonl')),
    'VALIDATION_FILE': repr(str(folder / 'valid.jsonl')),
    'TOKENIZER_PATH': repr(str(folder / 'tokenizer.json')),
  } | changes
  parse(files, **bindings)
  return identity.of_run()


def test_the_files_of_a_run_go_by_their_macros(parse, folder):
  found = supervised(parse, folder)
  assert {'TRAIN_FILE', 'VALIDATION_FILE', 'TOKENIZER_PATH'} <= set(found)
  assert found['TRAIN_FILE'].path == str(folder / 'train.jsonl')
  code = found['tasks.preference_files'].path
  assert code == str(_ROOT / 'tasks/preference_files.py')
  assert not any(name.startswith(('ipo_md', 'optax')) for name in found)
  assert 'MODEL_DIR' not in found


@pytest.mark.parametrize(
  ('file', 'name'),
  [
    ('train.jsonl', 'TRAIN_FILE'),
    ('valid.jsonl', 'VALIDATION_FILE'),
    ('tokenizer.json', 'TOKENIZER_PATH'),
  ],
)
@pytest.mark.parametrize('same_size', [True, False])
def test_a_file_that_was_replaced_is_named(
  parse, folder, file, name, same_size
):
  before = supervised(parse, folder)
  stat = (folder / file).stat()
  (folder / file).write_text('[]\n' if same_size else '{"a": 1}\n')
  os.utime(folder / file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  (line,) = identity.changes(before, supervised(parse, folder))
  assert line.startswith(f'{name}: {folder / file} (')


def test_a_chat_template_that_was_replaced_is_named(parse, folder):
  (folder / 'chat_template.jinja').write_text('a')
  given = {'CHAT_TEMPLATE': repr(str(folder))}
  before = supervised(parse, folder, **given)
  assert before == supervised(parse, folder, **given)
  (folder / 'chat_template.jinja').write_text('b')
  (line,) = identity.changes(before, supervised(parse, folder, **given))
  assert line.startswith(f'CHAT_TEMPLATE: {folder} (')


def test_the_files_of_a_folder_and_of_a_mixture(parse, folder):
  (folder / 'rows').mkdir()
  (folder / 'rows/b.parquet').write_text('b')
  mixed = [(str(folder / 'train.jsonl'), 1.0), (str(folder / 'rows'), 2.0)]
  given = {'TRAIN_FILE': repr(mixed)}
  before = supervised(parse, folder, **given)
  (folder / 'rows/b.parquet').write_text('c')
  (line,) = identity.changes(before, supervised(parse, folder, **given))
  assert line.startswith(f'TRAIN_FILE[1][0]: {folder / "rows"}')


def test_another_time_or_a_copy_is_no_change(parse, folder):
  before = supervised(parse, folder)
  os.utime(folder / 'train.jsonl', (0, 0))
  shutil.copy(folder / 'valid.jsonl', folder / 'copy')
  os.replace(folder / 'copy', folder / 'valid.jsonl')
  assert not identity.changes(before, supervised(parse, folder))


def test_an_input_that_is_gone_is_left_to_its_reader(parse, folder):
  before = supervised(parse, folder)
  (folder / 'train.jsonl').unlink()
  found = supervised(parse, folder)
  assert 'TRAIN_FILE' not in found
  assert not identity.changes(before, found)


def test_relative_paths_and_home_name_the_same_file(parse, folder, monkeypatch):
  before = supervised(parse, folder)
  monkeypatch.setenv('HOME', str(folder))
  monkeypatch.chdir(folder)
  found = supervised(
    parse, folder, TRAIN_FILE="'~/train.jsonl'", VALIDATION_FILE="'valid.jsonl'"
  )
  assert found == before


def test_any_text_that_names_a_file_is_an_input(folder):
  """Such as the template of a user's own function."""
  template = folder / 'template.jinja'
  template.write_text('x')
  target = lambda: None
  target.__module__ = 'builtins'
  uses = [(target, 'own.template', 'path', str(template))]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      private_apis,
      'used_bindings',
      lambda counts: (use for use in uses if counts(use[0], use[2])),
    )
    (found,) = identity.of_run().items()
    assert found[0] == 'own.template.path'
    target.may_change = {'path'}
    assert not identity.of_run()


@pytest.mark.parametrize('text', ['train', 'a\nb', 'x' * 5000, '/', 'gs://a/b'])
def test_other_texts_are_not_taken_for_files(text, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'train').write_text('')
  assert identity._of_named_file(text, 'X') is None


def test_only_what_the_run_refers_to_counts(parse, folder):
  supervised(parse, folder)
  used = {name for _, name, _, _ in private_apis.used_bindings()}
  assert any(name.endswith('.supervised') for name in used)
  assert not any(name.endswith('rewards') for name in used)


def test_a_large_file_is_told_apart_wherever_it_differs(tmp_path, monkeypatch):
  monkeypatch.setattr(identity, '_WHOLE', 1000)
  path = tmp_path / 'weights'
  content = bytearray(np.random.default_rng(0).bytes(3_000_000))
  path.write_bytes(content)
  before = identity.of_file(str(path), 'X')
  for place in (0, 1_234_567, len(content) - 1):
    changed = bytearray(content)
    changed[place] ^= 1
    path.write_bytes(changed)
    assert identity.of_file(str(path), 'X').digest != before.digest
  path.write_bytes(content)
  assert identity.of_file(str(path), 'X') == before
  path.write_bytes(content[:-1])
  assert identity.of_file(str(path), 'X').digest != before.digest


def test_a_large_file_is_read_in_part(tmp_path):
  path = tmp_path / 'weights'
  with path.open('wb') as file:
    file.truncate(2**40)  # a hole, which takes no room
  assert identity.of_file(str(path), 'X') is not None


def test_a_folder_is_its_names_and_contents(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a/x').write_text('1')
  (tmp_path / 'y').write_text('2')
  before = identity.of_files(epath.Path(tmp_path))
  (tmp_path / 'a/x').rename(tmp_path / 'a/z')
  assert identity.of_files(epath.Path(tmp_path)) != before
  (tmp_path / 'a/z').rename(tmp_path / 'a/x')
  assert identity.of_files(epath.Path(tmp_path)) == before
  (tmp_path / 'notes').write_text('')
  only = lambda name: name != 'notes'
  assert identity.of_files(epath.Path(tmp_path), only) == before


def test_arrays_differ_in_values_shape_or_type():
  array = np.arange(6, dtype=np.int32)
  others = [
    array[::-1],
    array.reshape(2, 3),
    array.astype(np.int64),
    array.view(np.float32),
  ]
  digests = {identity.of_arrays([x]) for x in [array, *others]}
  assert len(digests) == 5
  assert identity.of_arrays([array, array]) not in digests
  assert identity.of_arrays([array.copy()]) in digests
  assert identity.of_arrays([np.zeros((0,))])


def test_code_counts_with_what_it_imports_of_its_package(tmp_path, monkeypatch):
  package = tmp_path / 'own_tasks'
  package.mkdir()
  (package / '__init__.py').write_text('')
  (package / 'task.py').write_text('import os\nfrom own_tasks import lib\n')
  (package / 'lib.py').write_text('import own_tasks.task\nx = 1\n')
  (package / 'other.py').write_text('')
  monkeypatch.syspath_prepend(str(tmp_path))
  before = identity.of_module('own_tasks.task', 'X')
  assert before.path == str(package / 'task.py')
  (package / 'other.py').write_text('x = 2\n')
  assert identity.of_module('own_tasks.task', 'X') == before
  (package / 'lib.py').write_text('import own_tasks.task\nx = 2\n')
  changed = identity.of_module('own_tasks.task', 'X')
  assert changed.digest != before.digest
  (package / 'lib.py').write_text(
    '"""What it does."""\nimport own_tasks.task\n\nx = 2  # two\n'
  )
  (package / 'task.py').write_text('import os\nfrom own_tasks import lib  #\n')
  again = identity.of_module('own_tasks.task', 'X').digest
  (package / 'lib.py').write_text('"""It."""\nimport own_tasks.task\nx = 2\n')
  assert identity.of_module('own_tasks.task', 'X').digest == again
  assert 'own_tasks.task' not in sys.modules
  assert identity.of_module('own_tasks.no_such', 'X') is None
  assert identity.of_module('no_such_package.task', 'X') is None


def test_relative_imports_count(tmp_path, monkeypatch):
  package = tmp_path / 'own_judges'
  (package / 'inner').mkdir(parents=True)
  (package / '__init__.py').write_text('')
  (package / 'inner' / '__init__.py').write_text('from ..helper import x\n')
  (package / 'judge.py').write_text('from . import inner\nfrom .... import y\n')
  (package / 'helper.py').write_text('x = 1\n')
  monkeypatch.syspath_prepend(str(tmp_path))
  before = identity.of_module('own_judges.judge', 'X')
  (package / 'helper.py').write_text('x = 2\n')
  assert identity.of_module('own_judges.judge', 'X').digest != before.digest


def test_a_function_without_bindings_is_an_input(parse, folder, monkeypatch):
  (folder / 'my_rewards.py').write_text('def reward(batch):\n  return 1.0\n')
  (folder / 'my.gin').write_text(
    'from __gin__ import dynamic_registration\n'
    'import my_rewards\n'
    'from ipo_md import training\n'
    'training.train.part_weight = @my_rewards.reward\n'
  )
  monkeypatch.syspath_prepend(str(folder))
  found = supervised(parse, folder, folder / 'my.gin')
  assert found['my_rewards'].path == str(folder / 'my_rewards.py')


def test_a_damaged_record_is_named(tmp_path):
  (tmp_path / identity.FILE).write_text('{"X": 1}')
  with pytest.raises(ValueError, match='inputs.json is damaged'):
    identity.read(epath.Path(tmp_path))


def test_a_tracker_of_the_user_is_no_input(parse, folder, monkeypatch):
  """Neither its code nor the file to which it writes."""
  monkeypatch.syspath_prepend(str(folder))
  (folder / 'metrics.csv').write_text('step,loss\n')
  (folder / 'my_writer.py').write_text(
    'class Csv:\n  def __init__(self, path):\n    self.path = path\n'
  )
  overlay = folder / 'mine.gin'
  overlay.write_text(
    'from __gin__ import dynamic_registration\nimport my_writer\n'
    'TRACKER = @my_writer.Csv()\n'
    f'my_writer.Csv.path = {str(folder / "metrics.csv")!r}\n'
  )
  plain = supervised(parse, folder)
  bindings = model_dir.bindings(gin.config_str())
  assert supervised(parse, folder, overlay) == plain
  assert model_dir.bindings(gin.config_str()) == bindings
