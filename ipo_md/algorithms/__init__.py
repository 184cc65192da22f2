"""Train steps. An algorithm is a loss plus mixture coefficients."""

from ipo_md.algorithms.host_feedback import two_programs
from ipo_md.algorithms.judge_training import comparator_step
from ipo_md.algorithms.judge_training import judge_metrics
from ipo_md.algorithms.judge_training import reward_step
from ipo_md.algorithms.objective import feedback_of
from ipo_md.algorithms.offline import offline_step
from ipo_md.algorithms.online import online_step
from ipo_md.algorithms.supervised import supervised_metrics
from ipo_md.algorithms.supervised import supervised_step
from ipo_md.algorithms.supervised import target_tokens
from ipo_md.algorithms.win_rate import win_rate_metrics

__all__ = [
  'comparator_step',
  'feedback_of',
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
