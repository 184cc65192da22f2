"""Measures how often the 95 % intervals of win rates cover the truth.

  python tests/benchmarks/intervals.py

Simulates 2,000 comparisons for each win rate, number of prompts and share of
ties, relative to the largest share that the win rate allows. Prints the share
of intervals that cover the win rate. A second table has the length-controlled
win rate in 500 comparisons whose outcome and ties depend on length, and a third
one the mean over A x B seeds of both sides, in 2,000 comparisons whose seeds
spread equally on either side or on the side of B alone. Takes two minutes.
"""

import numpy as np
from scipy import special

from ipo_md.core import intervals
from ipo_md.evaluation import statistics

REPETITIONS = 2000
LENGTH_REPETITIONS = 500


def coverage(rng, rate, tied, count):
  """Returns the coverage of the score interval."""
  ties = tied * 2 * min(rate, 1 - rate)
  shares = [rate - ties / 2, ties, 1 - rate - ties / 2]
  wins, ties, _ = rng.multinomial(count, shares, size=REPETITIONS).T
  low, high = intervals.score_interval(wins, ties, count)
  return np.mean((low <= rate) & (rate <= high))


def coverage_of_length_control(rng, rate, tied, count):
  """Returns the coverage of the length-controlled win rate's interval."""
  covered = 0
  for _ in range(LENGTH_REPETITIONS):
    length = rng.normal(0, 10, count).round()
    rates = special.expit(special.logit(rate) + length / 20)
    ties = tied * 2 * np.minimum(rates, 1 - rates)
    drawn = rng.random(count)
    wins, losses = drawn < rates - ties / 2, drawn >= rates + ties / 2
    found = statistics.length_controlled_win_rate(
      0.5 + 0.5 * wins - 0.5 * losses, length
    )
    covered += found.low <= rate <= found.high
  return covered / LENGTH_REPETITIONS


def coverage_of_seeds(rng, first, second, *, alone):
  """Returns the coverage of the interval of the mean over seeds."""
  covered = 0
  for _ in range(REPETITIONS):
    rates = 0.6 + rng.normal(0, 0.005, (first, second))
    rates += rng.normal(0, 0.02, second)
    if not alone:
      rates += rng.normal(0, 0.02, (first, 1))
    found = statistics.seed_means(rates)
    covered += found.low <= 0.6 <= found.high
  return covered / REPETITIONS


def main():
  rng = np.random.default_rng(0)
  print('win rate  prompts   no ties  half tied  9 of 10 tied')
  for rate in (0.5, 0.8, 0.99):
    for count in (256, 1024, 2000):
      of_ties = [coverage(rng, rate, tied, count) for tied in (0, 0.5, 0.9)]
      print(
        f'{rate:8.2f} {count:8,} {of_ties[0]:9.3f} {of_ties[1]:10.3f} '
        f'{of_ties[2]:13.3f}'
      )
  print('\nlength-controlled\nwin rate  prompts   no ties  .3 tied  .9 tied')
  for rate in (0.5, 0.8, 0.95):
    for count in (64, 256):
      a, b, c = (
        coverage_of_length_control(rng, rate, tied, count)
        for tied in (0, 0.3, 0.9)
      )
      print(f'{rate:8.2f} {count:8,} {a:9.3f} {b:8.3f} {c:8.3f}', flush=True)
  print('\nseeds   both sides vary   one side varies')
  for first, second in ((2, 2), (3, 3), (5, 2), (5, 5), (1, 3), (1, 5)):
    a, b = (
      coverage_of_seeds(rng, first, second, alone=alone)
      for alone in (False, True)
    )
    both = '-' if first == 1 else f'{a:.3f}'
    print(f'{first} x {second} {both:>17} {b:17.3f}', flush=True)


if __name__ == '__main__':
  main()
