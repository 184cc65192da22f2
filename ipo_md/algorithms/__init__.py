"""Train steps. An algorithm is one loss plus one mixture coefficient each.

The objectives are in `ipo_md.algorithms.losses`. A step is a function
(state, frozen, batch, rng) -> (state, metrics) whose other arguments gin binds.
"""

from ipo_md.algorithms.host_feedback import two_programs
from ipo_md.algorithms.judge_training import comparator_step
from ipo_md.algorithms.judge_training import judge_metrics
from ipo_md.algorithms.judge_training import reward_step
from ipo_md.algorithms.objective import Feedback
from ipo_md.algorithms.offline import offline_step
from ipo_md.algorithms.online import online_step
from ipo_md.algorithms.players import Players
from ipo_md.algorithms.supervised import supervised_metrics
from ipo_md.algorithms.supervised import supervised_step
from ipo_md.algorithms.supervised import target_tokens
from ipo_md.algorithms.win_rate import win_rate_metrics

__all__ = [
  'Feedback',
  'Players',
  'comparator_step',
  'judge_metrics',
  'offline_step',
  'online_step',
  'reward_step',
  'supervised_metrics',
  'supervised_step',
  'target_tokens',
  'two_programs',
  'win_rate_metrics',
]
