"""The training loop and its configuration."""

from ipo_md.training.config import Evaluation
from ipo_md.training.config import Schedule
from ipo_md.training.config import Start
from ipo_md.training.config import Watch
from ipo_md.training.loop import train
from ipo_md.training.meter import Meter
from ipo_md.training.state import abstract_frozen
from ipo_md.training.state import abstract_state
from ipo_md.training.state import make_optimizer

__all__ = [
  'Evaluation',
  'Meter',
  'Schedule',
  'Start',
  'Watch',
  'abstract_frozen',
  'abstract_state',
  'make_optimizer',
  'train',
]
