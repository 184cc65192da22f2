"""Damaged checkpoints are detected and moved, and the run continues."""

import json
import pathlib
import resource
import shutil

from etils import epath
import numpy as np
import pytest

from ipo_md.checkpoints import checksums
from tests.training import micro_run

pytestmark = pytest.mark.slow


def run(path: pathlib.Path, steps: int = 6, **changes) -> None:
  """Starts a micro run that saves at every other step."""
  micro_run.supervised(path, steps, evaluation=None, **changes)


@pytest.fixture(scope='module', name='straight')
def straight_fixture(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('straight')
  run(path)
  return path


@pytest.fixture(name='copied')
def copied_fixture(straight, tmp_path) -> pathlib.Path:
  """Returns a copy of the run that is not marked as complete."""
  shutil.copytree(straight, tmp_path / 'run')
  (tmp_path / 'run' / 'COMPLETED').unlink()
  return tmp_path / 'run'


def flip(path: pathlib.Path, at: int) -> None:
  content = bytearray(path.read_bytes())
  content[at] ^= 4
  path.write_bytes(content)


def test_every_file_is_sealed(straight):
  checkpoint = straight / 'checkpoints' / '6'
  files = {
    str(path.relative_to(checkpoint))
    for path in checkpoint.rglob('*')
    if path.is_file()
  }
  sealed = json.loads((checkpoint / checksums.FILE).read_text())
  assert set(sealed) == files - {checksums.FILE, checksums.COMMITTED}
  assert checksums.damaged_files(checkpoint) == []


def test_any_flipped_byte_cut_or_missing_file_is_named(straight, tmp_path):
  rng = np.random.default_rng(0)
  source = straight / 'checkpoints' / '6'
  files = [p.relative_to(source) for p in source.rglob('*') if p.is_file()]
  for number, name in enumerate(files):
    if str(name) == checksums.COMMITTED:  # it is never read
      continue
    for fault in ('flip', 'cut', 'missing'):
      copy = tmp_path / f'{number}{fault}'
      shutil.copytree(source, copy)
      path = copy / name
      if fault == 'flip' and path.name != '_CHECKPOINT_METADATA':
        flip(path, rng.integers(path.stat().st_size))
      elif fault == 'flip':
        flip(path, path.read_text().index('vocabulary'))
      elif fault == 'cut':
        path.write_bytes(path.read_bytes()[:-3])
      else:
        path.unlink()
      assert checksums.damaged_files(copy), (name, fault)


@pytest.mark.parametrize('fault', ['flip', 'metadata', 'empty', 'half'])
def test_the_run_continues_from_the_previous_checkpoint_and_says_so(
  copied, straight, capsys, fault
):
  latest = copied / 'checkpoints' / '6'
  if fault == 'flip':
    largest = max(latest.rglob('*'), key=lambda p: p.stat().st_size)
    flip(largest, largest.stat().st_size // 2)
  elif fault == 'metadata':
    (latest / '_CHECKPOINT_METADATA').write_text('{')
  elif fault == 'empty':
    shutil.rmtree(latest)
    latest.mkdir()
  else:  # Orbax's name of a checkpoint whose run was killed before the commit
    latest.rename(copied / 'checkpoints' / '6.orbax-checkpoint-tmp-1')
  run(copied)
  said = capsys.readouterr().out
  assert 'Resumed from step 4' in said
  if fault != 'half':
    assert 'the checkpoint of step 6 is damaged' in said
    assert 'Continuing from step 4' in said
    assert (copied / 'damaged' / '6.0').is_dir()
  assert checksums.damaged_files(latest) == []
  micro_run.assert_equal(
    micro_run.params_of(copied), micro_run.params_of(straight)
  )


def test_a_half_deleted_checkpoint_is_never_sealed(copied):
  """A run was killed while it deleted a checkpoint in Cloud Storage."""
  half = copied / 'checkpoints' / '4'
  (half / checksums.COMMITTED).unlink()
  (half / 'default' / '_METADATA').unlink()
  unfinished = copied / 'checkpoints' / '8.orbax-checkpoint-tmp'
  shutil.copytree(copied / 'checkpoints' / '6', unfinished)
  for name in (checksums.FILE, checksums.COMMITTED):
    (unfinished / name).unlink()
  checksums.seal(epath.Path(copied / 'checkpoints'))
  assert checksums.damaged_files(unfinished) == []
  assert checksums.damaged_files(half) == ['default/_METADATA']


def test_a_checkpoint_is_deleted_in_one_step(copied, monkeypatch):
  """A killed run leaves none half deleted; the next one removes the rest."""
  folder, removed = copied / 'checkpoints', []
  rmtree = shutil.rmtree

  def record(path, *args, **kwargs):
    removed.append(str(path))
    rmtree(path, *args, **kwargs)

  monkeypatch.setattr(shutil, 'rmtree', record)
  (folder / 'deleted' / '2').mkdir(parents=True)
  run(copied, 10)
  assert checksums.numbered(folder) == [8, 10]
  assert not (folder / 'deleted').exists()
  assert str(folder / 'deleted') in removed
  assert not {str(folder / str(step)) for step in range(11)} & {*removed}


def test_no_whole_checkpoint_is_an_error_and_nothing_is_touched(copied):
  for step in (4, 6):
    (copied / 'checkpoints' / str(step) / 'default' / '_METADATA').unlink()
  before = sorted(copied.rglob('*'))
  with pytest.raises(ValueError, match='step 6 .*step 4 .*no earlier one'):
    run(copied)
  assert sorted(copied.rglob('*')) == before


def test_damaged_parameters_are_not_replaced_by_others(copied):
  flip(copied / 'checkpoints' / '6' / 'default' / '_METADATA', 9)
  message = r'CHECKPOINT_PATH .*6 is damaged: default/_METADATA. .*steps \[4\]'
  with pytest.raises(ValueError, match=message):
    micro_run.params_of(copied)
  micro_run.params_of(copied / 'checkpoints' / '4')


def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(copied):
  """No file may grow beyond 4 kB, so that every write of an array fails."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
  try:
    with pytest.raises(RuntimeError, match='MODEL_DIR.*last one .* of step 6'):
      run(copied, 8)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert checksums.numbered(copied / 'checkpoints') == [4, 6]
  assert checksums.damaged_files(copied / 'checkpoints' / '6') == []
  assert not (copied / 'COMPLETED').exists()
