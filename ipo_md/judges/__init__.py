"""Judges of completions, on the device or on the host.

A `DeviceJudge` is part of the train step: `reward_model`, `likelihood`,
`pairwise_likelihood`, `comparator`, `preference_representation` and
`indifferent`. A `HostJudge` judges samples between steps or after training:
`TextJudge`, `LearnedJudge`, `TextRewardModel`, `RewardFunction`,
`PreferenceFunction`, `WeightedRewards`, `HttpJudge` and `CachedJudge`. Each
declares which of the two it is (`declaration_of`).
"""

from ipo_md.judges.chat_client import Endpoint
from ipo_md.judges.comparison import comparator
from ipo_md.judges.comparison import comparator_log_probs
from ipo_md.judges.comparison import pairwise_likelihood
from ipo_md.judges.declaration import Declaration
from ipo_md.judges.declaration import check_params
from ipo_md.judges.declaration import checkpoint_paths
from ipo_md.judges.declaration import declaration_of
from ipo_md.judges.declaration import declare
from ipo_md.judges.declaration import gives
from ipo_md.judges.declaration import reads_tokens
from ipo_md.judges.function import PreferenceFunction
from ipo_md.judges.function import RewardFunction
from ipo_md.judges.host import CachedJudge
from ipo_md.judges.host import LearnedJudge
from ipo_md.judges.host import TextJudge
from ipo_md.judges.host import best_of
from ipo_md.judges.host import feedback
from ipo_md.judges.host import in_both_orders
from ipo_md.judges.host import preference
from ipo_md.judges.http import HttpJudge
from ipo_md.judges.learned import DeviceJudge
from ipo_md.judges.learned import indifferent
from ipo_md.judges.learned import likelihood
from ipo_md.judges.learned import preference_representation
from ipo_md.judges.learned import reward_model
from ipo_md.judges.samples import HostJudge
from ipo_md.judges.samples import Measure
from ipo_md.judges.samples import Pairs
from ipo_md.judges.samples import Samples
from ipo_md.judges.samples import decode_prompts
from ipo_md.judges.samples import mean_over_orders
from ipo_md.judges.template import Template
from ipo_md.judges.text_reward import TextRewardModel
from ipo_md.judges.weighted import WeightedRewards

__all__ = [
  'CachedJudge',
  'Declaration',
  'DeviceJudge',
  'Endpoint',
  'HostJudge',
  'HttpJudge',
  'LearnedJudge',
  'Measure',
  'Pairs',
  'PreferenceFunction',
  'RewardFunction',
  'Samples',
  'Template',
  'TextJudge',
  'TextRewardModel',
  'WeightedRewards',
  'best_of',
  'check_params',
  'checkpoint_paths',
  'comparator',
  'comparator_log_probs',
  'declaration_of',
  'declare',
  'decode_prompts',
  'feedback',
  'gives',
  'in_both_orders',
  'indifferent',
  'likelihood',
  'mean_over_orders',
  'pairwise_likelihood',
  'preference',
  'preference_representation',
  'reads_tokens',
  'reward_model',
]
