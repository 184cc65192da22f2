"""Reads, writes, verifies and converts checkpoints of every format."""

from ipo_md.checkpoints.export_lora import export
from ipo_md.checkpoints.load import describe
from ipo_md.checkpoints.load import identify
from ipo_md.checkpoints.load import identify_all
from ipo_md.checkpoints.load import identity
from ipo_md.checkpoints.load import load_params
from ipo_md.checkpoints.manager import Keep
from ipo_md.checkpoints.manager import adapted
from ipo_md.checkpoints.manager import open_manager
from ipo_md.checkpoints.manager import restore
from ipo_md.checkpoints.manager import save
from ipo_md.checkpoints.manager import wait
from ipo_md.checkpoints.saved_folder import save as save_model_folder

__all__ = [
  'Keep',
  'adapted',
  'describe',
  'export',
  'identify',
  'identify_all',
  'identity',
  'load_params',
  'open_manager',
  'restore',
  'save',
  'save_model_folder',
  'wait',
]
