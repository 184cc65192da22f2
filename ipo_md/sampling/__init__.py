"""Sampling from the token mixture, and log-probabilities of sequences."""

from ipo_md.sampling.log_ratios import check_dtype
from ipo_md.sampling.log_ratios import log_prob
from ipo_md.sampling.log_ratios import rounds
from ipo_md.sampling.log_ratios import with_value
from ipo_md.sampling.mixture import Sampled
from ipo_md.sampling.mixture import sample
from ipo_md.sampling.mixture import validate
from ipo_md.sampling.sampler import Sampler
from ipo_md.sampling.sampler import complete
from ipo_md.sampling.sequences import at_real_length
from ipo_md.sampling.sequences import decoder_inputs
from ipo_md.sampling.sequences import ended
from ipo_md.sampling.sequences import join
from ipo_md.sampling.sequences import log_probs
from ipo_md.sampling.sequences import reading_inputs
from ipo_md.sampling.sequences import sum_or_mean
from ipo_md.sampling.sequences import token_log_probs
from ipo_md.sampling.sequences import without

__all__ = [
  'Sampled',
  'Sampler',
  'at_real_length',
  'check_dtype',
  'complete',
  'decoder_inputs',
  'ended',
  'join',
  'log_prob',
  'log_probs',
  'reading_inputs',
  'rounds',
  'sample',
  'sum_or_mean',
  'token_log_probs',
  'validate',
  'with_value',
  'without',
]
