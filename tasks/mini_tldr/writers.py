"""Summaries of mini_tldr's posts, by writers of mixed quality.

A summary consists of clauses joined by commas and the question:

  in denver, feel guilty, work as nurse. should i quit my job?

As in real data, most writers leave facts out, ramble or get a fact wrong, so
that a policy fine-tuned on their summaries has room to improve.
"""

from collections.abc import Sequence
import dataclasses

from tasks.mini_tldr import grammar


@dataclasses.dataclass(frozen=True)
class Writer:
  """The error rates of a writer.

  The first four are probabilities per fact of the post, the others per summary.
  """

  drop: float  # leaves the fact out
  wrong: float  # gives it another value
  garble: float  # breaks the clause
  repeat: float  # says it twice
  invent: float  # adds a fact of a kind that the post does not have
  ramble: float  # adds fillers
  forget: float  # leaves the question out
  misquote: float  # asks another question


# Writers of the references for supervised fine-tuning: a careful one, a
# careless one and one that rambles.
WRITERS = (
  Writer(0.1, 0.02, 0.0, 0.02, 0.05, 0.1, 0.1, 0.02),
  Writer(0.4, 0.15, 0.05, 0.1, 0.2, 0.3, 0.4, 0.1),
  Writer(0.25, 0.15, 0.05, 0.2, 0.3, 0.8, 0.4, 0.05),
)
# Writers of the compared summaries: the same, and two with the errors of a
# small language model, which garbles clauses and gets values wrong.
COMPARED_WRITERS = (
  *WRITERS,
  Writer(0.3, 0.5, 0.1, 0.1, 0.3, 0.3, 0.3, 0.2),
  Writer(0.1, 0.3, 0.02, 0.05, 0.1, 0.1, 0.1, 0.1),
)
PERFECT = Writer(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
MAX_WORDS = 31  # words and punctuation marks of a summary


def join(clauses: Sequence[str], question: str | None) -> str:
  """Joins a summary and drops the last clauses if it is too long."""
  said = ', '.join(clauses)
  asked = '' if question is None else f'{question}?'
  text = f'{said}. {asked}'.strip() if said else asked
  if len(grammar.words(text)) > MAX_WORDS:
    return join(clauses[:-1], question)
  return text


def _garble(said: str, dice: grammar.Dice) -> str:
  """Deletes a word of the clause or replaces it by one of another clause."""
  words = said.split()
  place = dice.roll(len(words))
  if dice.chance(0.5):
    del words[place]
  else:
    kind = dice.roll(len(grammar.KINDS))
    words[place] = dice.choose(grammar.clause(kind, 0).split()[:-1] or ['in'])
  return ' '.join(words)


def _draft(
  about: grammar.Post, writer: Writer, dice: grammar.Dice
) -> tuple[list[str], str | None]:
  """Draws the clauses and the question of a summary."""
  clauses = []
  for kind, value in about.facts:
    if dice.chance(writer.drop):
      continue
    if dice.chance(writer.wrong):
      value = _other_value(kind, value, dice)
    said = grammar.clause(kind, value)
    if dice.chance(writer.garble):
      said = _garble(said, dice)
    clauses.append(said)
    if dice.chance(writer.repeat):
      clauses.insert(dice.roll(len(clauses) + 1), said)
  if dice.chance(writer.invent):
    present = [kind for kind, _ in about.facts]
    kind = dice.choose(
      [k for k in range(len(grammar.KINDS)) if k not in present]
    )
    said = grammar.clause(kind, dice.roll(len(grammar.KINDS[kind].values)))
    clauses.insert(dice.roll(len(clauses) + 1), said)
  while dice.chance(writer.ramble) and len(clauses) < 8:
    clauses.insert(dice.roll(len(clauses) + 1), dice.choose(about.fillers))
  question = about.question
  if dice.chance(writer.forget):
    question = None
  elif dice.chance(writer.misquote):
    question = dice.choose(grammar.TOPICS).question
  return clauses, question


def _other_value(kind: int, value: int, dice: grammar.Dice) -> int:
  count = len(grammar.KINDS[kind].values)
  return (value + 1 + dice.roll(count - 1)) % count


def write(about: grammar.Post, writer: Writer, dice: grammar.Dice) -> str:
  """Returns a summary of the post."""
  return join(*_draft(about, writer, dice))


def write_pair(about: grammar.Post, dice: grammar.Dice) -> tuple[str, str]:
  """Returns two summaries of the post to compare.

  Two in five pairs are by two writers. The others differ in one place: a fact
  is right in one summary and changed or left out in the other, or one summary
  repeats a clause. These pairs teach a judge to look facts up in the post and
  to notice repetitions.
  """
  writer = dice.choose(COMPARED_WRITERS)
  if dice.chance(0.4):
    other = dice.choose(COMPARED_WRITERS)
    pair = [write(about, writer, dice), write(about, other, dice)]
    return tuple(dice.shuffle(pair, 2))
  kind, value = dice.choose(about.facts)
  clauses, question = _draft(about, writer, dice)
  kept = [grammar.clause(kind, value)]
  clauses = [said for said in clauses if said != kept[0]]
  edit = dice.roll(8)
  if edit < 5:
    changed = [grammar.clause(kind, _other_value(kind, value, dice))]
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


def reference(
  split: str, index: int, *, seed: int = 0
) -> tuple[grammar.Post, str]:
  """Returns a post and the summary that supervised fine-tuning imitates."""
  about = grammar.post(split, index, seed=seed)
  dice = grammar.Dice(seed, split, index, 'reference')
  return about, write(about, dice.choose(WRITERS), dice)


def several(
  split: str, index: int, *, count: int, seed: int = 0
) -> tuple[grammar.Post, list[str]]:
  """Returns a post and summaries of it by different writers, at most five."""
  about = grammar.post(split, index, seed=seed)
  dice = grammar.Dice(seed, split, index, 'several')
  chosen = dice.shuffle(COMPARED_WRITERS, count)
  return about, [write(about, writer, dice) for writer in chosen]


def compared(
  split: str, index: int, *, seed: int = 0
) -> tuple[grammar.Post, str, str]:
  """Returns a post and two summaries to compare."""
  about = grammar.post(split, index, seed=seed)
  return about, *write_pair(about, grammar.Dice(seed, split, index, 'pair'))
