"""A ground truth of mini_tldr whose preferences are cyclic.

A summary has three virtues, each between 0 and 1, and faults:

  coverage  share of the post's facts that it states
  brevity   1 - words / 24, at least 0
  style     1 if it asks the post's question and no other
  faults    1.5 invented + .75 repeated + .5 fillers + .75 malformed
            + .75 if it asks another question

Coverage beats brevity, brevity beats style, and style beats coverage. With
v = (coverage, brevity, style) and the sum over (i, k) = (1, 2), (2, 3), (3, 1):

  P(y > z) = sigmoid(8 sum (v_i(y) v_k(z) - v_k(y) v_i(z))
                     + (faults(z) - faults(y)) / 2)

The first term is skew-symmetric of rank 2, a disc game. No reward explains it:
with equal faults, a summary of all facts with the question, one of a few facts
without it, and a bare question beat each other in a circle. Only faults are bad
in every comparison.
"""

from collections.abc import Sequence
import math

from tasks.mini_tldr import truth

CYCLE = 8.0  # weight of the virtues
FAULTS = 0.5  # weight of the faults
MAX_WORDS = 24  # at which brevity is 0


def virtues(post: str, summary: str) -> tuple[float, float, float]:
  """Returns coverage, brevity and style of any text as a summary."""
  scored = truth.score(post, summary)
  facts, _ = truth.read_post(post)
  return (
    scored.kept / len(facts),
    max(0.0, 1 - scored.words / MAX_WORDS),
    float(scored.question == 1),
  )


def faults(post: str, summary: str) -> float:
  """Returns the weighted sum of what is wrong in a summary."""
  scored = truth.score(post, summary)
  return (
    1.5 * scored.invented
    + 0.75 * scored.repeated
    + 0.5 * scored.fillers
    + 0.75 * scored.malformed
    + 0.75 * (scored.question == -1)
  )


def advantage(post: str, y_1: str, y_2: str) -> float:
  """Returns the logit of P(y_1 > y_2 | post), skew-symmetric in y_1 and y_2."""
  a, b = virtues(post, y_1), virtues(post, y_2)
  cycle = sum(a[i] * b[k] - a[k] * b[i] for i, k in ((0, 1), (1, 2), (2, 0)))
  return CYCLE * cycle + FAULTS * (faults(post, y_2) - faults(post, y_1))


def preference(post: str, y_1: str, y_2: str) -> float:
  """Returns P(y_1 > y_2 | post)."""
  return (1 + math.tanh(advantage(post, y_1, y_2) / 2)) / 2


def rewards(post: str, summaries: Sequence[str]) -> list[float]:
  """Returns the mean advantage of each summary over the given ones."""
  return [
    sum(advantage(post, y, z) for z in summaries) / len(summaries)
    for y in summaries
  ]


def measures(
  posts: Sequence[str], summaries: Sequence[str]
) -> list[dict[str, float]]:
  """Returns the measures of `truth.measures`, the virtues and the faults.

  Args:
    posts: [N] posts.
    summaries: [N] summaries of these posts.
  """
  names = ('coverage', 'brevity', 'style')
  return [
    counted
    | dict(zip(names, virtues(post, summary), strict=True))
    | {'faults': faults(post, summary)}
    for post, summary, counted in zip(
      posts, summaries, truth.measures(posts, summaries), strict=True
    )
  ]
