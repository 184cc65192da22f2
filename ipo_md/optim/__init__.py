"""Optimizers, learning rate schedules, and what steps make of gradients."""

from ipo_md.optim.accumulation import accumulate
from ipo_md.optim.accumulation import check
from ipo_md.optim.extragradients import extragradient
from ipo_md.optim.optimizers import adafactor
from ipo_md.optim.optimizers import adam
from ipo_md.optim.optimizers import apply
from ipo_md.optim.optimizers import skipping
from ipo_md.optim.schedules import constant
from ipo_md.optim.schedules import cosine
from ipo_md.optim.schedules import linear

__all__ = [
  'accumulate',
  'adafactor',
  'adam',
  'apply',
  'check',
  'constant',
  'cosine',
  'extragradient',
  'linear',
  'skipping',
]
