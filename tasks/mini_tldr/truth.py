"""The ground truth of mini_tldr: it reads a summary and scores it.

It reads any text, so it can score everything that a policy writes. It makes the
preferences of the data set and evaluates policies. Online training sees only
the judge that was trained on these preferences.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re

from tasks.mini_tldr import grammar


@dataclasses.dataclass(frozen=True)
class Reading:
  """The content of a summary, independent of the post.

  A clause ends at a comma, a full stop, a question mark or the end of the text.
  Its first occurrence is a fact, a filler, a question or malformed. Further
  occurrences are repetitions.
  """

  facts: frozenset[tuple[int, int]]  # (kind, value)
  questions: tuple[str, ...]
  repeated: int
  fillers: int
  malformed: int
  words: int


@dataclasses.dataclass(frozen=True)
class Score:
  """The counts of a summary, compared with its post, and their total."""

  kept: int  # facts of the post
  invented: int  # facts that the post does not state
  repeated: int
  fillers: int
  malformed: int
  question: int  # 1: only the post's question, 0: none, -1: another one
  words: int

  @property
  def total(self) -> float:
    """The weighted sum of the counts, a multiple of 1/20."""
    return (
      self.kept
      - 1.5 * self.invented
      - 0.75 * self.repeated
      - 0.5 * self.fillers
      - 0.75 * self.malformed
      + 0.75 * self.question
      - 0.05 * self.words
    )


_QUESTIONS = frozenset(topic.question for topic in grammar.TOPICS)
_FILLERS = frozenset(grammar.FILLERS)
_CLAUSES = {
  grammar.clause(k, v): (k, v)
  for k, kind in enumerate(grammar.KINDS)
  for v in range(len(kind.values))
}
_SENTENCES = {
  template.format(value): (k, v)
  for k, kind in enumerate(grammar.KINDS)
  for v, value in enumerate(kind.values)
  for template in kind.post
}
_SEGMENT = re.compile(r'([^,.?]*)([,.?]|$)')


def _segments(text: str) -> list[tuple[str, str]]:
  """Splits a text into (clause, end mark). The last mark may be empty."""
  return [(' '.join(c.split()), mark) for c, mark in _SEGMENT.findall(text)]


@functools.lru_cache(maxsize=65536)
def read_post(post: str) -> tuple[frozenset[tuple[int, int]], str]:
  """Returns the facts and the question of a post.

  Raises:
    ValueError: The text is not a post of mini_tldr.
  """
  segments = _segments(post.partition(' post: ')[2])
  facts = frozenset(_SENTENCES[c] for c, _ in segments if c in _SENTENCES)
  questions = [c for c, mark in segments if c in _QUESTIONS and mark == '?']
  if not facts or not questions:
    raise ValueError(f'{post!r} is not a post of mini_tldr.')
  return facts, questions[-1]


def read_summary(summary: str) -> Reading:
  """Reads any text as a summary."""
  said, facts, questions = set(), set(), []
  repeated = fillers = malformed = 0
  for part, mark in _segments(summary):
    if not part:
      malformed += bool(mark)  # a mark without a clause
    elif part in said:
      repeated += 1
    elif part in _QUESTIONS and mark == '?':
      questions.append(part)
    elif part in _CLAUSES and mark != '?':
      facts.add(_CLAUSES[part])
    elif part in _FILLERS and mark != '?':
      fillers += 1
    else:
      malformed += 1
    said.add(part)
  return Reading(
    facts=frozenset(facts),
    questions=tuple(questions),
    repeated=repeated,
    fillers=fillers,
    malformed=malformed,
    words=len(summary.split()),
  )


def score(post: str, summary: str) -> Score:
  """Scores any text as a summary of the post."""
  facts, asked = read_post(post)
  read = read_summary(summary)
  question = 0
  if read.questions:
    question = 1 if read.questions == (asked,) else -1
  return Score(
    kept=len(read.facts & facts),
    invented=len(read.facts - facts),
    repeated=read.repeated,
    fillers=read.fillers,
    malformed=read.malformed,
    question=question,
    words=read.words,
  )


def preference(post: str, y_1: str, y_2: str) -> float:
  """Returns 1 if y_1 is the better summary, 0 if y_2 is, 0.5 for a tie."""
  difference = score(post, y_1).total - score(post, y_2).total
  # Totals are multiples of 1/20, so a smaller difference is rounding.
  if abs(difference) < 1e-6:
    return 0.5
  return float(difference > 0)


def rewards(post: str, summaries: Sequence[str]) -> list[float]:
  """Returns the total score of each summary of a post."""
  return [score(post, summary).total for summary in summaries]


def measures(
  posts: Sequence[str], summaries: Sequence[str]
) -> list[dict[str, float]]:
  """Returns the reported measures of each summary.

  All but `facts_kept`, `facts_invented` and `score` can be counted without the
  post: `clauses` and `questions` count right and wrong ones.

  Args:
    posts: [N] posts.
    summaries: [N] summaries of these posts.
  """
  return [
    _measures(score(post, summary), read_summary(summary))
    for post, summary in zip(posts, summaries, strict=True)
  ]


def _measures(scored: Score, read: Reading) -> dict[str, float]:
  return {
    'facts_kept': scored.kept,
    'facts_invented': scored.invented,
    'score': scored.total,
    'clauses': len(read.facts),
    'questions': len(read.questions),
    'repeated': read.repeated,
    'fillers': read.fillers,
    'malformed': read.malformed,
    'words': read.words,
  }
