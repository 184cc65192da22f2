"""Short forum posts, and summaries of them by writers of mixed quality.

A post is a subreddit, a title, three to five facts among one to three fillers,
and a question. A fact is a kind and one of its values; no value belongs to two
kinds, and each is one piece of the vocabulary. A summary is clauses joined by
commas, then the question:

  r/jobs title: no raise again. post: i live in denver. sorry for the long
  post. now i feel guilty. i work as a nurse. should i quit my job? tl;dr:

  in denver, feel guilty, work as nurse. should i quit my job?

Everything is a function of (seed, split, index) through a hash, so that it is
the same in every process and on every version of Python and numpy.
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
  """A kind of fact: how posts and summaries say it, and its values."""

  post: tuple[str, ...]  # templates of a sentence
  summary: str  # template of a clause
  values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Topic:
  """What a post is about."""

  subreddit: str
  titles: tuple[str, ...]
  question: str


@dataclasses.dataclass(frozen=True)
class Post:
  """A post and what it says, in its order."""

  text: str
  facts: tuple[tuple[int, int], ...]  # (kind, value), indices
  fillers: tuple[str, ...]
  question: str


@dataclasses.dataclass(frozen=True)
class Writer:
  """How often a summary of this writer goes wrong.

  The first four are rates per fact of the post, the others per summary.
  """

  drop: float  # leaves the fact out
  wrong: float  # gives it another value
  garble: float  # breaks the clause
  repeat: float  # says it twice
  invent: float  # adds a fact of a kind that the post does not have
  ramble: float  # adds fillers
  forget: float  # leaves the question out
  misquote: float  # asks another question


KINDS = (
  Kind(
    ('i am {} years old', 'i just turned {}'),
    'i am {}',
    ('19', '21', '23', '26', '28', '31', '34', '38'),
  ),
  Kind(
    ('i live in {}', 'we moved to {}'),
    'in {}',
    'denver boston austin seattle chicago dallas phoenix miami'.split(),
  ),
  Kind(
    ('i work as a {}', 'my job is {}'),
    'work as {}',
    'nurse teacher chef student driver lawyer waiter plumber'.split(),
  ),
  Kind(
    ('it is about my {}', 'the problem is my {}'),
    'about my {}',
    'roommate sister boss neighbor cousin boyfriend landlord uncle'.split(),
  ),
  Kind(
    ('it cost me {} dollars', 'i lost {} dollars'),
    'lost {} dollars',
    ('50', '80', '200', '300', '500', '900', '1500', '4000'),
  ),
  Kind(
    ('this started in {}', 'it goes on since {}'),
    'since {}',
    'january march april june july august october december'.split(),
  ),
  Kind(
    ('it got worse on {}', 'we had a fight on {}'),
    'fight on {}',
    'monday tuesday wednesday thursday friday saturday sunday'.split(),
  ),
  Kind(
    ('my {} is broken now', 'somebody broke my {}'),
    'broken {}',
    'laptop bike phone couch guitar camera car oven'.split(),
  ),
  Kind(
    ('there is a {} at home', 'i also have a {}'),
    'have a {}',
    'dog cat parrot hamster rabbit ferret turtle snake'.split(),
  ),
  Kind(
    ('i used to love {}', 'i gave up {}'),
    'gave up {}',
    'running chess yoga painting poker dancing fishing skating'.split(),
  ),
  Kind(
    ('now i feel {}', 'all this makes me {}'),
    'feel {}',
    'angry sad scared jealous confused lonely guilty bored'.split(),
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

# Writers of the references for supervised fine-tuning: as in the real data,
# most are neither careful nor hopeless.
WRITERS = (
  Writer(0.1, 0.02, 0.0, 0.02, 0.05, 0.1, 0.1, 0.02),
  Writer(0.4, 0.15, 0.05, 0.1, 0.2, 0.3, 0.4, 0.1),
  Writer(0.25, 0.15, 0.05, 0.2, 0.3, 0.8, 0.4, 0.05),
)
# Writers of the summaries that are compared: as above, with the errors of a
# small language model, which garbles, and misses the value of a fact.
COMPARED_WRITERS = (
  *WRITERS,
  Writer(0.3, 0.5, 0.1, 0.1, 0.3, 0.3, 0.3, 0.2),
  Writer(0.1, 0.3, 0.02, 0.05, 0.1, 0.1, 0.1, 0.1),
)
PERFECT = Writer(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

MAX_WORDS = 31  # words and marks of a writer's summary

_BUCKETS = {'train': (2, 3, 4, 5, 6, 7), 'validation': (0,), 'test': (1,)}


class Dice:
  """Throws that are a function of the key alone.

  A 512-bit hash of the key, read as a number of mixed radix.
  """

  def __init__(self, *key: Any):
    digest = hashlib.blake2b(repr(key).encode()).digest()
    self._rest = int.from_bytes(digest, 'big')

  def roll(self, sides: int) -> int:
    """A number from 0 to sides - 1."""
    self._rest, face = divmod(self._rest, sides)
    return face

  def chance(self, probability: float) -> bool:
    return self.roll(1024) < 1024 * probability

  def choose(self, items: Sequence[Any]) -> Any:
    return items[self.roll(len(items))]

  def shuffle(self, items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, without replacement, in random order."""
    items = list(items)
    return [items.pop(self.roll(len(items))) for _ in range(count)]


@functools.cache
def clause(kind: int, value: int) -> str:
  """How a summary says the fact."""
  return KINDS[kind].summary.format(KINDS[kind].values[value])


def _draw_post(dice: Dice) -> Post:
  kinds = dice.shuffle(range(len(KINDS)), 3 + dice.roll(3))
  facts = [(kind, dice.roll(len(KINDS[kind].values))) for kind in kinds]
  sentences = [
    (dice.choose(KINDS[kind].post).format(KINDS[kind].values[value]), fact)
    for fact in facts
    for kind, value in [fact]
  ]
  fillers = dice.shuffle(FILLERS, 1 + dice.roll(3))
  sentences += [(filler, None) for filler in fillers]
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
  """The post at `index` of a split.

  A checksum of its text tells the split, so no text is in two splits.
  """
  if split not in _BUCKETS:
    raise ValueError(f'mini_tldr has no split {split!r}: {list(_BUCKETS)}.')
  for attempt in range(1000):
    drawn = _draw_post(Dice(seed, split, index, attempt))
    if zlib.crc32(drawn.text.encode()) % 8 in _BUCKETS[split]:
      return drawn
  raise RuntimeError('1000 posts in a row belong to other splits.')


def words(text: str) -> list[str]:
  """Words and marks, each of which is a piece of the vocabulary."""
  return re.findall(r'[a-z0-9]+|[^a-z0-9 ]', text)


def join(clauses: Sequence[str], question: str | None) -> str:
  """A summary of its parts, the last ones cut if it grows too long."""
  said = ', '.join(clauses)
  asked = '' if question is None else f'{question}?'
  text = f'{said}. {asked}'.strip() if said else asked
  if len(words(text)) > MAX_WORDS:
    return join(clauses[:-1], question)
  return text


def _garble(said: str, dice: Dice) -> str:
  """Loses a word of the clause, or takes one from another clause."""
  words = said.split()
  place = dice.roll(len(words))
  if dice.chance(0.5):
    del words[place]
  else:
    kind = dice.roll(len(KINDS))
    words[place] = dice.choose(clause(kind, 0).split()[:-1] or ['in'])
  return ' '.join(words)


def _draft(
  about: Post, writer: Writer, dice: Dice
) -> tuple[list[str], str | None]:
  """(clauses, question) of a summary."""
  clauses = []
  for kind, value in about.facts:
    if dice.chance(writer.drop):
      continue
    if dice.chance(writer.wrong):
      value = _other_value(kind, value, dice)
    said = clause(kind, value)
    if dice.chance(writer.garble):
      said = _garble(said, dice)
    clauses.append(said)
    if dice.chance(writer.repeat):
      clauses.insert(dice.roll(len(clauses) + 1), said)
  if dice.chance(writer.invent):
    present = [kind for kind, _ in about.facts]
    kind = dice.choose([k for k in range(len(KINDS)) if k not in present])
    said = clause(kind, dice.roll(len(KINDS[kind].values)))
    clauses.insert(dice.roll(len(clauses) + 1), said)
  while dice.chance(writer.ramble) and len(clauses) < 8:
    clauses.insert(dice.roll(len(clauses) + 1), dice.choose(about.fillers))
  question = about.question
  if dice.chance(writer.forget):
    question = None
  elif dice.chance(writer.misquote):
    question = dice.choose(TOPICS).question
  return clauses, question


def _other_value(kind: int, value: int, dice: Dice) -> int:
  count = len(KINDS[kind].values)
  return (value + 1 + dice.roll(count - 1)) % count


def write(about: Post, writer: Writer, dice: Dice) -> str:
  """A summary of the post."""
  return join(*_draft(about, writer, dice))


def write_pair(about: Post, dice: Dice) -> tuple[str, str]:
  """Two summaries of the post to compare.

  Two in five pairs are by two writers. The others differ in one place: a fact
  is kept by one of them and changed or left out by the other, or a clause is
  there twice. They teach a judge to look a fact up in the post, and to notice
  a repetition.
  """
  writer = dice.choose(COMPARED_WRITERS)
  if dice.chance(0.4):
    other = dice.choose(COMPARED_WRITERS)
    pair = [write(about, writer, dice), write(about, other, dice)]
    return tuple(dice.shuffle(pair, 2))
  kind, value = dice.choose(about.facts)
  clauses, question = _draft(about, writer, dice)
  kept = [clause(kind, value)]
  clauses = [said for said in clauses if said != kept[0]]
  edit = dice.roll(8)
  if edit < 5:
    changed = [clause(kind, _other_value(kind, value, dice))]
  elif edit < 6 or not clauses:
    changed = []
  else:
    kept, changed = [], [dice.choose(clauses)]
  place = dice.roll(len(clauses) + 1)
  pair = [
    join([*clauses[:place], *said, *clauses[place:]], question)
    for said in (kept, changed)
  ]
  return tuple(dice.shuffle(pair, 2))


def reference(split: str, index: int, *, seed: int = 0) -> tuple[Post, str]:
  """A post and the summary that supervised fine-tuning imitates."""
  about = post(split, index, seed=seed)
  dice = Dice(seed, split, index, 'reference')
  return about, write(about, dice.choose(WRITERS), dice)


def compared(split: str, index: int, *, seed: int = 0) -> tuple[Post, str, str]:
  """A post and two summaries to compare."""
  about = post(split, index, seed=seed)
  return about, *write_pair(about, Dice(seed, split, index, 'pair'))
