"""A judge that asks a language model behind an OpenAI-compatible endpoint.

The rater's prompt asks for '1' or '2', once for each order of a pair.
`answer_probability` reads the answers. Position bias cancels in the mean over
both orders, as in OAIF (arXiv 2402.04792).
"""

from collections.abc import Generator
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import math
import re
import time
from typing import Literal
from typing import NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

from ipo_md.core import model_dir
from ipo_md.core import progress
from ipo_md.judges import answer_probability
from ipo_md.judges import chat_client
from ipo_md.judges import chat_response
from ipo_md.judges import declaration
from ipo_md.judges import samples as samples_lib

_FIELDS = ('text', 'first', 'second')
_BYTES_PER_TOKEN = 4  # assumed by the estimate of costs
_QUIET_SECONDS = 30  # between two lines without a label
_TRIAL = 8  # questions that are asked before the others
# A run stops at this number of unreadable answers if they are this share.
_UNREADABLE = 4
_UNREADABLE_SHARE = 1 / 4


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
      'tie' yields NaN, which counts as 1/2. 'error' stops the run: after eight
      questions if half of their answers are such, as soon as they are a quarter
      of the answers (and at least four), or else once all questions are asked.
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
    self._tried = self._warned = False

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
    neither, count = [], 0
    with contextlib.closing(self._progress(prompts)) as coming:
      for index, answer in coming:
        count += 1
        p = answer_probability.probability_of_first(answer)
        if p is None:
          neither.append(answer)
          self._no_answers += 1
          p = math.nan
        found[places[index]] = 1 - p if places[index][2] else p
        if len(neither) >= max(_UNREADABLE, _UNREADABLE_SHARE * count):
          if self._neither == 'error':
            break
          self._warn(neither, count)
    if neither and self._neither == 'error':
      self._raise(neither, count, len(prompts))

  def _warn(self, neither: Sequence[chat_response.Answer], count: int) -> None:
    """Says once that many answers count as ties."""
    if not self._warned:
      self._warned = True
      print(
        f'{len(neither)} of {count} answers of {self._endpoint.model} are '
        f"neither 1 nor 2 and count 1/2 (NEITHER = 'tie'), such as "
        f'{_shown(neither[0])}.',
        flush=True,
      )

  def _raise(
    self, neither: Sequence[chat_response.Answer], count: int, total: int
  ) -> NoReturn:
    """Raises the error about answers that are neither 1 nor 2."""
    left = total - count
    rest = f'; the run stopped before the other {left}' if left else ''
    cut = [a for a in neither if a.incomplete and a.text.strip()]
    long = [a for a in neither if 'length' in (a.incomplete or '')]
    hint = (
      f' {len(long)} of them were cut off: raise max_tokens in '
      'RATER_PARAMETERS, which a model that reasons needs.'
      if long
      else ''
    )
    raise ValueError(
      f'{len(neither)} of {count} answers of {self._endpoint.model} are '
      f'neither 1 nor 2, such as {_shown((cut or neither)[0])}{rest}.{hint} '
      "All whole answers are stored. Set NEITHER = 'tie' to count these as "
      '1/2, or improve RATER_PROMPT or RATER_PARAMETERS.'
    )

  def fill(self, **fields: str) -> str:
    """Returns the rater's prompt about a text and its two completions."""
    return re.sub(r'{(\w+)}', lambda match: fields[match[1]], self._prompt)

  def _progress(
    self, prompts: list[str]
  ) -> Generator[tuple[int, chat_response.Answer], None, None]:
    """Yields the answers, and shows an estimate, the progress and the costs."""
    coming = self._ask(prompts, self._estimate(prompts))
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

  def _ask(
    self, prompts: list[str], cached: Sequence[bool]
  ) -> Generator[tuple[int, chat_response.Answer, int], None, None]:
    """Asks a few questions first, and the others once these are answered."""
    first = list(range(len(prompts)))
    if not self._tried:
      self._tried = True
      new = [i for i, known in enumerate(cached) if not known][_TRIAL:]
      first = sorted({*first} - {*new})
    later = sorted({*range(len(prompts))} - {*first})
    keep = lambda answer: (
      answer_probability.probability_of_first(answer) is not None
    )
    for part in (first, later):
      asked = self._endpoint.ask([prompts[i] for i in part], keep)
      with contextlib.closing(asked) as coming:
        for index, answer, failures in coming:
          yield part[index], answer, failures

  def _estimate(self, prompts: list[str]) -> list[bool]:
    """Prints the number of questions and their tokens before they are asked.

    Returns:
      Whether the answer to each question is stored.
    """
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
    return cached

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


def _shown(answer: chat_response.Answer) -> str:
  """Formats an answer for an error."""
  shown = repr((answer.refusal or answer.text)[:80])
  return f'{shown} ({answer.incomplete})' if answer.incomplete else shown
