"""Short posts of mini_tldr, drawn from a seeded grammar.

A post has a subreddit, a title, three to five facts, one to three fillers and a
question. A fact is a kind and one of its values. No value belongs to two kinds,
and each value is one piece of the vocabulary.

  r/jobs title: no raise again. post: i live in denver. sorry for the long
  post. now i feel guilty. i work as a nurse. should i quit my job? tl;dr:

A post is a function of (seed, split, index) through a hash, so it is the same
in every process and under every version of Python and NumPy.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import re
from typing import Any
import zlib


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of fact, with its values and its wording."""

  post: tuple[str, ...]  # templates of a sentence in a post
  summary: str  # template of a clause in a summary
  values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Topic:
  """The topic of a post."""

  subreddit: str
  titles: tuple[str, ...]
  question: str


@dataclasses.dataclass(frozen=True)
class Post:
  """A post and its content, in order."""

  text: str
  facts: tuple[tuple[int, int], ...]  # (kind, value), indices
  fillers: tuple[str, ...]
  question: str


def _kind(post: tuple[str, str], summary: str, values: str) -> Kind:
  return Kind(post, summary, tuple(values.split()))


KINDS = (
  _kind(
    ('i am {} years old', 'i just turned {}'),
    'i am {}',
    '19 21 23 26 28 31 34 38',
  ),
  _kind(
    ('i live in {}', 'we moved to {}'),
    'in {}',
    'denver boston austin seattle chicago dallas phoenix miami',
  ),
  _kind(
    ('i work as a {}', 'my job is {}'),
    'work as {}',
    'nurse teacher chef student driver lawyer waiter plumber',
  ),
  _kind(
    ('it is about my {}', 'the problem is my {}'),
    'about my {}',
    'roommate sister boss neighbor cousin boyfriend landlord uncle',
  ),
  _kind(
    ('it cost me {} dollars', 'i lost {} dollars'),
    'lost {} dollars',
    '50 80 200 300 500 900 1500 4000',
  ),
  _kind(
    ('this started in {}', 'it goes on since {}'),
    'since {}',
    'january march april june july august october december',
  ),
  _kind(
    ('it got worse on {}', 'we had a fight on {}'),
    'fight on {}',
    'monday tuesday wednesday thursday friday saturday sunday',
  ),
  _kind(
    ('my {} is broken now', 'somebody broke my {}'),
    'broken {}',
    'laptop bike phone couch guitar camera car oven',
  ),
  _kind(
    ('there is a {} at home', 'i also have a {}'),
    'have a {}',
    'dog cat parrot hamster rabbit ferret turtle snake',
  ),
  _kind(
    ('i used to love {}', 'i gave up {}'),
    'gave up {}',
    'running chess yoga painting poker dancing fishing skating',
  ),
  _kind(
    ('now i feel {}', 'all this makes me {}'),
    'feel {}',
    'angry sad scared jealous confused lonely guilty bored',
  ),
)
TOPICS = (
  Topic(
    'roommates',
    ('living together is hard', 'i want my own place'),
    'should i move out',
  ),
  Topic(
    'relationships',
    ('we said awful things', 'no peace at home'),
    'should i say sorry',
  ),
  Topic(
    'legaladvice',
    ('is this even legal', 'they took my things'),
    'do i call the police',
  ),
  Topic(
    'jobs',
    ('no raise again', 'too many long days'),
    'should i quit my job',
  ),
  Topic(
    'family',
    ('keeping a big secret', 'nobody at home knows'),
    'do i tell my parents',
  ),
  Topic(
    'amiwrong',
    ('everyone is mad at me', 'they call me selfish'),
    'am i the bad guy',
  ),
  Topic(
    'personalfinance',
    ('deep in debt', 'the bank said no'),
    'how do i save money',
  ),
  Topic(
    'dating',
    ('left on read', 'no answer for days'),
    'should i text again',
  ),
)
FILLERS = (
  'sorry for the long post',
  'i am on mobile',
  'this is a throwaway account',
  'english is not my first language',
  'honestly i am so tired',
  'it is a long story',
  'thanks for reading this',
  'i barely sleep these days',
  'my friends do not help',
  'i try to stay calm',
  'please be kind',
  'i never posted here before',
)

_BUCKETS = {'train': (2, 3, 4, 5, 6, 7), 'validation': (0,), 'test': (1,)}


class Dice:
  """A random number generator that is a function of its key alone.

  A 512-bit hash of the key is read as a mixed-radix number. When it is used up,
  the hash of the key and the next block number follows.
  """

  def __init__(self, *key: Any):
    self._key = key
    self._blocks = 0
    self._rest = 0

  def roll(self, sides: int) -> int:
    """Returns an integer from 0 to sides - 1."""
    if self._rest.bit_length() < 64:  # too few bits for a fair roll
      block = repr((*self._key, self._blocks)).encode()
      self._rest = int.from_bytes(hashlib.blake2b(block).digest(), 'big')
      self._blocks += 1
    self._rest, face = divmod(self._rest, sides)
    return face

  def chance(self, probability: float) -> bool:
    return self.roll(1024) < 1024 * probability

  def choose(self, items: Sequence[Any]) -> Any:
    return items[self.roll(len(items))]

  def shuffle(self, items: Sequence[Any], count: int) -> list[Any]:
    """Draws `count` items without replacement, in random order."""
    items = list(items)
    return [items.pop(self.roll(len(items))) for _ in range(count)]


@functools.cache
def clause(kind: int, value: int) -> str:
  """Returns the clause that states a fact in a summary."""
  return KINDS[kind].summary.format(KINDS[kind].values[value])


def _draw_post(dice: Dice) -> Post:
  kinds = dice.shuffle(range(len(KINDS)), 3 + dice.roll(3))
  fillers = dice.shuffle(FILLERS, 1 + dice.roll(3))
  sentences = [(filler, None) for filler in fillers]
  for kind in kinds:
    value = dice.roll(len(KINDS[kind].values))
    template = dice.choose(KINDS[kind].post)
    sentences.append(
      (template.format(KINDS[kind].values[value]), (kind, value))
    )
  sentences = dice.shuffle(sentences, len(sentences))
  topic = dice.choose(TOPICS)
  body = ' '.join(f'{sentence}.' for sentence, _ in sentences)
  return Post(
    text=(
      f'r/{topic.subreddit} title: {dice.choose(topic.titles)}. '
      f'post: {body} {topic.question}? tl;dr:'
    ),
    facts=tuple(fact for _, fact in sentences if fact is not None),
    fillers=tuple(fillers),
    question=topic.question,
  )


def post(split: str, index: int, *, seed: int = 0) -> Post:
  """Returns the post at `index` of a split.

  A checksum of its text determines the split, so no text is in two splits.

  Raises:
    ValueError: There is no such split.
  """
  if split not in _BUCKETS:
    raise ValueError(
      f'mini_tldr has no split {split!r}, only {list(_BUCKETS)}.'
    )
  for attempt in range(1000):
    drawn = _draw_post(Dice(seed, split, index, attempt))
    if zlib.crc32(drawn.text.encode()) % 8 in _BUCKETS[split]:
      return drawn
  raise RuntimeError('1000 posts in a row belong to other splits.')


def words(text: str) -> list[str]:
  """Splits a text into words and punctuation marks, the pieces."""
  return re.findall(r'[a-z0-9]+|[^a-z0-9 ]', text)
