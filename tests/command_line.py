"""Calls the command line in the process of a test."""

import pathlib

from absl import flags
import gin
import pytest

from ipo_md import __main__ as main
from ipo_md.core import gin_config

ROOT = pathlib.Path(__file__).parent.parent
SIZES = {
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 8,
  'num_encoder_layers': 1,
  'num_decoder_layers': 1,
  'mlp_dim': 16,
}
FILES = (
  'gin/runs/supervised.gin',
  'gin/models/t5_tiny.gin',
  'gin/tasks/mini_tldr.gin',
)


def arguments(model_dir, *, files=FILES, without=(), **changes) -> list[str]:
  """The command line of a micro run."""
  bindings = {
    'MODEL_DIR': f"'{model_dir}'",
    'TRAIN_STEPS': 2,
    'BATCH_SIZE': 8,
    'LOG_PERIOD': 1,
    'EVAL_PERIOD': 0,
    'EVAL_EXAMPLES': 8,
    'EVAL_BATCH_SIZE': 8,
    'CHECKPOINT_PERIOD': 0,
    'DROPOUT_RATE': 0.1,
    'data.load.split': "'validation'",
    **{f'models.T5.{name}': size for name, size in SIZES.items()},
  } | changes
  return [f'--gin_file={file}' for file in files] + [
    f'--gin.{name}={value}'
    for name, value in bindings.items()
    if name not in without
  ]


@pytest.fixture(name='call')
def call_fixture(monkeypatch):
  """Calls the command in this process, which has joined the others already."""
  monkeypatch.setattr(main, 'start_processes', lambda: None)
  # Other tests' search paths would be listed in the errors.
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])

  def call(args):
    gin.clear_config()
    for name in ('gin_file', 'gin_bindings'):
      flags.FLAGS[name].unparse()  # else they add to those of the last call
    flags.FLAGS(gin_config.rewrite_gin_args(['ipo_md', *args]))
    main.main(['ipo_md'])

  yield call
  gin.clear_config()


def error_of(call, args, capsys) -> str:
  """What it says; an exit code of 1, one message, no traceback."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as raised:
    call(args)
  assert raised.value.code == 1
  err = capsys.readouterr().err
  assert err.count('ipo_md: ') == 1
  assert 'Traceback' not in err
  assert len(err) < 1000
  return err
