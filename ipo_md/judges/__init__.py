"""Judges: on the device, inside the train step, or on the host."""

from ipo_md.judges.chat_client import Endpoint
from ipo_md.judges.host import Kept
from ipo_md.judges.host import LearnedJudge
from ipo_md.judges.host import TextJudge
from ipo_md.judges.host import best_of
from ipo_md.judges.host import orders
from ipo_md.judges.host import preference
from ipo_md.judges.http import HttpJudge
from ipo_md.judges.learned import DeviceJudge
from ipo_md.judges.learned import comparator
from ipo_md.judges.learned import comparator_log_probs
from ipo_md.judges.learned import indifferent
from ipo_md.judges.learned import likelihood
from ipo_md.judges.learned import preference_representation
from ipo_md.judges.learned import reward_model
from ipo_md.judges.samples import HostJudge
from ipo_md.judges.samples import Measure
from ipo_md.judges.samples import Pairs
from ipo_md.judges.samples import Samples
from ipo_md.judges.samples import bare_texts
from ipo_md.judges.samples import both_orders
from ipo_md.judges.template import Template

__all__ = [
  'DeviceJudge',
  'Endpoint',
  'HostJudge',
  'HttpJudge',
  'Kept',
  'LearnedJudge',
  'Measure',
  'Pairs',
  'Samples',
  'Template',
  'TextJudge',
  'bare_texts',
  'best_of',
  'both_orders',
  'comparator',
  'comparator_log_probs',
  'indifferent',
  'likelihood',
  'orders',
  'preference',
  'preference_representation',
  'reward_model',
]
