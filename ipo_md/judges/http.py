"""A judge that asks a language model behind an OpenAI-compatible endpoint.

The rater's prompt asks for '1' or '2', once for each order of a pair. Where
the server returns log-probabilities,

  P(1) = p('1') / (p('1') + p('2'))

at the token that answers. Each p is a sum over the tokens that consist of this
number and of spaces or punctuation ('1', ' 1', '**1'). Without
log-probabilities, P(1) is 1 or 0, depending on the text. Position bias cancels
in the mean over both orders, as in OAIF (arXiv 2402.04792).
"""

from collections.abc import Iterator
from collections.abc import Mapping
import math
import re
import time
from typing import Literal

import jax
from jax.experimental import multihost_utils
import numpy as np

from ipo_md.core import model_dir
from ipo_md.core import progress
from ipo_md.judges import chat_client
from ipo_md.judges import chat_connection
from ipo_md.judges import declaration
from ipo_md.judges import samples as samples_lib

_FIELDS = ('text', 'first', 'second')
# Matches 1 or 2 as a number of its own, and not in 12, 1.5, v1 or 1st.
_NAMED = re.compile(r'(?<![\w.,-])([12])(?!\w|[.,]\d)')
_BYTES_PER_TOKEN = 4  # assumed by the estimate of costs
_QUIET_SECONDS = 30  # between two lines without a label


@model_dir.may_change('neither', 'prices')
@declaration.declare(runs_on='host')
class HttpJudge:
  """Judges by a language model behind an endpoint.

  Two completions with the same text are a tie, and the model is not asked. If
  there are several processes, the first one asks and broadcasts the answers.

  Args:
    endpoint: The language model.
    prompt: RATER_PROMPT, with {text}, {first} and {second}.
    neither: NEITHER, the treatment of an answer that is neither 1 nor 2.
      'error' stops the run once all questions are asked, and 'tie' yields NaN,
      which counts as 1/2.
    prices: PRICES per million tokens of prompts and of answers, or None to
      show no costs.
    label: Text shown by the progress bar. None prints a line now and then
      instead, for a judge that is called at every update.

  Raises:
    ValueError: The prompt lacks a field, or NEITHER or PRICES is invalid.
  """

  def __init__(
    self,
    *,
    endpoint: chat_client.Endpoint,
    prompt: str,
    neither: Literal['error', 'tie'] = 'error',
    prices: tuple[float, float] | None = None,
    label: str | None = 'judging',
  ):
    fields = re.findall(r'{(\w*)}', prompt)
    if sorted(fields) != sorted(_FIELDS):
      raise ValueError(
        f'RATER_PROMPT has the fields {fields} instead of text, first and '
        f'second: {prompt!r}.'
      )
    if neither not in ('error', 'tie'):
      raise ValueError(f"NEITHER = {neither!r} is neither 'error' nor 'tie'.")
    if prices is not None and (len(prices) != 2 or min(prices) < 0):
      raise ValueError(
        f'PRICES = {prices} must be two prices of at least 0, for prompts and '
        'for answers.'
      )
    self._endpoint, self._prompt = endpoint, prompt
    self._neither, self._prices, self._label = neither, prices, label
    self._tokens = np.zeros(2, int)  # in prompts and in answers
    self._failed = self._no_answers = 0
    self._shown = -math.inf

  def __call__(
    self, samples: samples_lib.Samples, pairs: samples_lib.Pairs
  ) -> Iterator[np.ndarray]:
    """Yields [N, 2] P(y_i > y_k | x) per pair, y_i shown first and second.

    Raises:
      ValueError: Some answers are neither 1 nor 2, and NEITHER is 'error'.
    """
    found = np.full((len(samples.prompts), len(pairs), 2), 0.5)
    if jax.process_index() == 0:
      self._judge(samples, pairs, found)
    if jax.process_count() > 1:
      found = multihost_utils.broadcast_one_to_all(found)
    yield from np.moveaxis(found, 1, 0)

  def _judge(
    self,
    samples: samples_lib.Samples,
    pairs: samples_lib.Pairs,
    found: np.ndarray,
  ) -> None:
    """Asks about the pairs whose texts differ, and fills `found` [N, J, 2]."""
    prompts, places = [], []
    for n, (text, row) in enumerate(
      zip(samples.prompts, samples.texts, strict=True)
    ):
      for j, (i, k) in enumerate(pairs):
        if row[i] != row[k]:
          prompts.append(self.fill(text=text, first=row[i], second=row[k]))
          prompts.append(self.fill(text=text, first=row[k], second=row[i]))
          places += [(n, j, 0), (n, j, 1)]
    neither = []
    for index, answer in self._progress(prompts):
      p = probability_of_first(answer)
      if p is None:
        neither.append(answer.text)
        self._no_answers += 1
        p = math.nan
      found[places[index]] = 1 - p if places[index][2] else p
    if neither and self._neither == 'error':
      raise ValueError(
        f'{len(neither)} of {len(prompts)} answers of {self._endpoint.model} '
        f'are neither 1 nor 2, such as {neither[0][:80]!r}. All answers are '
        "stored. Set NEITHER = 'tie' to count these as 1/2, or improve "
        'RATER_PROMPT or RATER_PARAMETERS.'
      )

  def fill(self, **fields: str) -> str:
    """Returns the rater's prompt about a text and its two completions."""
    return re.sub(r'{(\w+)}', lambda match: fields[match[1]], self._prompt)

  def _progress(
    self, prompts: list[str]
  ) -> Iterator[tuple[int, chat_connection.Answer]]:
    """Yields the answers, and shows an estimate, the progress and the costs."""
    self._estimate(prompts)
    coming = self._endpoint.ask(prompts)
    if self._label is not None:
      coming = progress.progress(
        coming, len(prompts), lambda: f'{self._label}, {self._totals()}'
      )
    for index, answer, failures in coming:
      if failures >= 0:
        self._tokens += answer.usage
        self._failed += failures
      if self._label is None:
        self._now_and_then(f'judging, {self._totals()} so far')
      yield index, answer

  def _estimate(self, prompts: list[str]) -> None:
    """Prints the number of questions and their tokens before they are asked."""
    cached = self._endpoint.cached(prompts)
    new = {p for p, done in zip(prompts, cached, strict=True) if not done}
    tokens = sum(len(p.encode()) for p in new) // _BYTES_PER_TOKEN
    line = (
      f'{self._label or "judging"}: {len(prompts):,} questions to '
      f'{self._endpoint.model}, {len(new):,} of them new, about {tokens:,} '
      'tokens'
    )
    if self._prices is not None:
      line += f', about ${tokens * self._prices[0] / 1e6:.2f} without answers'
    if self._label is None:
      self._now_and_then(line)
    else:
      print(line, flush=True)

  def _now_and_then(self, line: str) -> None:
    if time.monotonic() - self._shown >= _QUIET_SECONDS:
      print(line, flush=True)
      self._shown = time.monotonic()

  def _totals(self) -> str:
    read, written = self._tokens
    parts = [f'{read:,} + {written:,} tokens']
    if self._prices is not None:
      parts.append(f'${self._tokens @ self._prices / 1e6:.2f}')
    for count, name in (
      (self._failed, 'failed attempts'),
      (self._no_answers, 'neither 1 nor 2'),
    ):
      if count:
        parts.append(f'{count:,} {name}')
    return ', '.join(parts)


def probability_of_first(answer: chat_connection.Answer) -> float | None:
  """Returns P(1), or None if the text names neither of 1 and 2, or both."""
  named = set(_NAMED.findall(answer.text))
  if len(named) != 1:
    return None
  (name,) = named
  for token, alternatives in answer.tokens or ():
    if _bare(token) == name:
      return _share(alternatives)
  return float(name == '1')


def _share(log_probs: Mapping[str, float]) -> float:
  numbers = {t: p for t, p in log_probs.items() if _bare(t) in ('1', '2')}
  best = max(numbers.values())
  mass = {'1': 0.0, '2': 0.0}
  for token, log_prob in numbers.items():
    mass[_bare(token)] += math.exp(log_prob - best)
  return mass['1'] / (mass['1'] + mass['2'])


def _bare(token: str) -> str:
  return re.sub(r'\W', '', token)
