"""The probability that a language model gave to the answer '1'.

Where the server returns log-probabilities,

  P(1) = p('1') / (p('1') + p('2'))

at the token that answers. Each p is a sum over the tokens that consist of this
number and of spaces or punctuation ('1', ' 1', '**1'). Without
log-probabilities, P(1) is 1 or 0, depending on the text. `answers` says how a
text is read.
"""

from collections.abc import Mapping
import math
import re

from ipo_md.judges import answers
from ipo_md.judges import chat_response


def probability_of_first(answer: chat_response.Answer) -> float | None:
  """Returns P(1), or None if the answer is neither 1 nor 2."""
  if answer.refusal is not None:
    return None
  reading = answers.read(answer.text, whole=answer.incomplete is None)
  if reading is None:
    return None
  alternatives = _alternatives(answer, reading)
  if alternatives is None:
    return float(reading.name == '1')
  return _share(alternatives)


def _alternatives(
  answer: chat_response.Answer, reading: answers.Reading
) -> Mapping[str, float] | None:
  """Returns the log-probabilities at the token that answers, if there is one.

  The tokens of what a model thought before its answer are passed over, also
  where the server leaves them out of the text.
  """
  if not answer.tokens or reading.place is None:
    return None
  joined = ''.join(token for token, _ in answer.tokens)
  text = answers.without_reasoning(answer.text)
  start = re.sub('[▁Ġ]', ' ', joined).rfind(text.strip())
  if start < 0:
    if text != answer.text or len(joined) > 2 * len(text) + 8:
      return None
    start = 0
  found, end = [], 0
  for token, alternatives in answer.tokens:
    end += len(token)
    if end > start and answers.bare(token) == reading.name:
      found.append(alternatives)
  if not found:
    return None
  return found[0 if reading.place == 'first' else -1]


def _share(log_probs: Mapping[str, float]) -> float:
  numbers = {
    t: p for t, p in log_probs.items() if answers.bare(t) in ('1', '2')
  }
  best = max(numbers.values())
  mass = {'1': 0.0, '2': 0.0}
  for token, log_prob in numbers.items():
    mass[answers.bare(token)] += math.exp(log_prob - best)
  return mass['1'] / (mass['1'] + mass['2'])
