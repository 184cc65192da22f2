"""The ground truth of mini_tldr: what a summary says, and what it is worth.

It reads text alone, so it scores whatever a policy writes. It makes the
preferences of the data set and evaluates policies; training on line sees the
preference model that was learnt from them.
"""

import dataclasses
import functools
import re

from tasks import mini_tldr_grammar as grammar


@dataclasses.dataclass(frozen=True)
class Score:
  """What a summary says, counted, and what it is worth.

  A fact counts once: said again it is repeated, said with another value it is
  invented. A clause that is neither a fact, a filler nor a question is
  malformed.
  """

  kept: int  # facts of the post
  invented: int  # facts that the post does not state
  repeated: int  # clauses said before
  fillers: int
  malformed: int  # clauses
  question: int  # 1: the post's; 0: none; -1: another
  words: int

  @property
  def total(self) -> float:
    return (
      self.kept
      - 1.25 * self.invented
      - self.repeated
      - 0.5 * self.fillers
      - self.malformed
      + self.question
      - 0.05 * self.words
    )


@functools.cache
def _meanings() -> tuple[dict, dict]:
  """(sentence of a post -> fact, clause of a summary -> fact)."""
  sentences, clauses = {}, {}
  for k, kind in enumerate(grammar.KINDS):
    for v, value in enumerate(kind.values):
      clauses[grammar.clause(k, v)] = (k, v)
      for template in kind.post:
        sentences[template.format(value)] = (k, v)
  return sentences, clauses


_QUESTIONS = frozenset(topic.question for topic in grammar.TOPICS)
_FILLERS = frozenset(grammar.FILLERS)
# A clause and the mark that ends it; the last may have none.
_SEGMENT = re.compile(r'([^,.?]*)([,.?]|$)')


@functools.lru_cache(maxsize=65536)
def read_post(post: str) -> tuple[frozenset, str]:
  """(facts, question) of a post.

  Raises:
    ValueError: the text is not a post of mini_tldr.
  """
  sentences, _ = _meanings()
  _, mark, body = post.partition(' post: ')
  parts = [part.strip() for part, _ in _SEGMENT.findall(body)]
  facts = frozenset(sentences[part] for part in parts if part in sentences)
  questions = [part for part in parts if part in _QUESTIONS]
  if not mark or not facts or not questions:
    raise ValueError(f'{post!r} is not a post of mini_tldr.')
  return facts, questions[-1]


def score(post: str, summary: str) -> Score:
  """Scores any text as a summary of the post."""
  facts, asked = read_post(post)
  _, clauses = _meanings()
  said = set()
  question = repeated = fillers = malformed = 0
  for part, mark in _SEGMENT.findall(summary):
    part = ' '.join(part.split())
    if not part:
      malformed += bool(mark)
      continue
    is_question = mark == '?' and part in _QUESTIONS
    if part in said:
      repeated += 1
    elif is_question:
      question = 1 if part == asked and question >= 0 else -1
    elif part in _FILLERS:
      fillers += 1
    elif mark == '?' or part not in clauses:
      malformed += 1
    said.add(part)
  stated = {clauses[part] for part in said if part in clauses}
  return Score(
    kept=len(stated & facts),
    invented=len(stated - facts),
    repeated=repeated,
    fillers=fillers,
    malformed=malformed,
    question=question,
    words=len(summary.split()),
  )


def preference(post: str, y_1: str, y_2: str) -> float:
  """1 if y_1 is the better summary, 0 if y_2 is, 0.5 if they tie."""
  # Totals are sums of multiples of 1/20: differences below 1e-6 are rounding.
  difference = score(post, y_1).total - score(post, y_2).total
  if abs(difference) < 1e-6:
    return 0.5
  return float(difference > 0)
