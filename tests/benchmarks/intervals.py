"""Measures how often the 95 % intervals of win rates cover the truth.

  python tests/benchmarks/intervals.py

Simulates 2,000 comparisons for each win rate, number of prompts and share of
ties, relative to the largest share that the win rate allows. Prints the share
of intervals that cover the win rate. `length` is the length-controlled win rate
in 500 comparisons whose outcome does not depend on length. Takes a minute.
"""

import numpy as np

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


def coverage_of_length_control(rng, rate, count):
  """Returns the coverage of the length-controlled win rate's interval."""
  covered = 0
  for _ in range(LENGTH_REPETITIONS):
    wins = (rng.random(count) < rate).astype(float)
    length = rng.normal(3, 10, count).round()
    found = statistics.length_controlled_win_rate(wins, length)
    covered += found.low <= rate <= found.high
  return covered / LENGTH_REPETITIONS


def main():
  rng = np.random.default_rng(0)
  print('win rate  prompts   no ties  half tied  9 of 10 tied   length')
  for rate in (0.5, 0.8, 0.99):
    for count in (256, 1024, 2000):
      of_ties = [coverage(rng, rate, tied, count) for tied in (0, 0.5, 0.9)]
      length = coverage_of_length_control(rng, rate, count)
      print(
        f'{rate:8.2f} {count:8,} {of_ties[0]:9.3f} {of_ties[1]:10.3f} '
        f'{of_ties[2]:13.3f} {length:8.3f}'
      )


if __name__ == '__main__':
  main()
