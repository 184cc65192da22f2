"""Conversations as tokens, by the chat template of the model.

The rendered conversation is tokenised as one text, in which the special tokens
that the template writes are special tokens:

  <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello<|im_end|>
                      prompt                                completion

A completion is what the template writes after the prompt, up to EOS. A special
token that is written out in a turn stays text.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Literal

from etils import epy

from ipo_md.core import row_files
from ipo_md.data import chat_template
from ipo_md.data import conversations
from ipo_md.data import special_marks

with epy.lazy_imports():
  import tokenizers

  from ipo_md.data import hf_vocabulary

# Texts have no NUL character; see `special_marks`.
_SENTINEL = '\0here\0'

Message = conversations.Message
Conversation = Sequence[Message]


@dataclasses.dataclass(frozen=True)
class Row:
  """A conversation and its completions as tokens.

  Attributes:
    prompt: Tokens of the prompt, at most `Chat.length`.
    completions: Tokens of each completion, with EOS.
    found: Counts of `examples.FOUND`.
  """

  prompt: Sequence[int]
  completions: Sequence[Sequence[int]]
  found: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Chat:
  """Turns conversations into tokens.

  Attributes:
    template: Chat template of the model.
    vocabulary: Vocabulary of the model.
    length: P, the most tokens of a prompt.
    closing: Text that asks for the completion, on a line of its own at the end
      of the last turn.
    cut_prompts: The end at which the last turn is cut if it is too long.
    eos_ids: EOS_ID, the tokens that end a completion. Empty for the one of the
      vocabulary.
  """

  template: chat_template.ChatTemplate
  vocabulary: hf_vocabulary.TokenizerVocabulary
  length: int
  closing: str = ''
  cut_prompts: Literal['front', 'end'] = 'end'
  eos_ids: tuple[int, ...] = ()

  @property
  def ends(self) -> tuple[int, ...]:
    """The ids that end a completion, first the one that a text ends with."""
    if self.eos_ids:
      return self.eos_ids
    return (self.vocabulary.eos_id,)

  @property
  def digest(self) -> str:
    """A text that differs if other tokens are made of a conversation."""
    own = f'{self.length} {self.closing!r} {self.cut_prompts} {self.ends}'
    return f'{self.template.digest} {own}'

  @functools.cached_property
  def _marks(self) -> special_marks.Marks:
    return special_marks.Marks(self.vocabulary.added_special_tokens)

  def check_end(self) -> None:
    """Checks with a short conversation what the template writes.

    Raises:
      ValueError: The template leaves out the prompt or the completion, or ends
        a turn with another special token than EOS.
    """
    asked, answered = conversations.of_prompt('31415'), ('27182',)
    draft = _Draft.of(self, asked, answered)
    if isinstance(draft, _Draft):
      for what, text, written in (
        ('prompt', '31415', draft.text),
        ('completion', '27182', draft.answers[0]),
      ):
        if text not in written:
          raise ValueError(
            f'The chat template {self.template.path} leaves out the {what}: '
            f'of a {what} of {text!r} it makes {written[:80]!r}. Set '
            'CHAT_TEMPLATE to another one.'
          )
    self.rows([asked], [answered])

  def rows(
    self, prompts: Sequence[Conversation], completions: Sequence[Sequence[str]]
  ) -> list[Row | row_files.BadRow]:
    """Tokenises conversations.

    Args:
      prompts: N conversations.
      completions: The texts of any number of completions of each.

    Returns:
      N rows, or the reasons why they are none.

    Raises:
      ValueError: The template ends a turn with a token that is not EOS.
    """
    drafts = [
      _Draft.of(self, messages, texts)
      for messages, texts in zip(prompts, completions, strict=True)
    ]
    good = [draft for draft in drafts if isinstance(draft, _Draft)]
    prompts_ = iter(self.vocabulary.encode_rendered([d.text for d in good]))
    answers = [text for d in good for text in d.answers]
    contexts = [d.context for d in good for _ in d.answers]
    encoded = iter(self._continuations(contexts, answers))
    rows = []
    for draft in drafts:
      if isinstance(draft, row_files.BadRow):
        rows.append(draft)
        continue
      prompt = next(prompts_)
      ends = [next(encoded) for _ in draft.answers]
      try:
        rows.append(draft.row(prompt, ends))
      except row_files.BadRow as error:
        rows.append(error)
    return rows

  def _continuations(
    self, contexts: Sequence[str], answers: Sequence[str]
  ) -> list[list[int]]:
    """Encodes texts that follow others, whose tokens do not change."""
    encode = self.vocabulary.encode_rendered
    distinct = list(dict.fromkeys(contexts))
    before = dict(zip(distinct, encode(distinct), strict=True))
    both = encode([c + a for c, a in zip(contexts, answers, strict=True)])
    found = []
    for context, answer, joined in zip(contexts, answers, both, strict=True):
      start = before[context].ids
      if joined.ids[: len(start)] == start:
        found.append(joined.ids[len(start) :])
      else:  # a token would reach over the end of the prompt
        found.append(self.vocabulary.encode_continuation(answer))
    return found

  def render(
    self, messages: Conversation, *, ask: bool, last: str | None = None
  ) -> str:
    """Renders a conversation, whose last turn may be replaced."""
    if last is not None:
      messages = [*messages[:-1], {**messages[-1], 'content': last}]
    return self.template.render(messages, ask=ask)

  def closed(self, text: str) -> str:
    """Returns the text of a last turn with the closing."""
    return f'{text}\n{self.closing}' if self.closing else text


@dataclasses.dataclass(frozen=True)
class _Draft:
  """A rendered row, not yet tokenised.

  Attributes:
    chat: What renders it.
    messages: The conversation, marked if `marks` is not None.
    marks: Marks of special tokens, if a turn writes one out.
    text: Rendered prompt.
    context: The end of it, from the last special token on.
    answers: Rendered completions without the prompt.
    contents: The texts of the completions, marked like the messages.
    trimmed: Whether the template changed the text of each completion.
  """

  chat: Chat
  messages: Conversation
  marks: special_marks.Marks | None
  text: str
  context: str
  answers: Sequence[str]
  contents: Sequence[str]
  trimmed: Sequence[bool]

  @classmethod
  def of(
    cls, chat: Chat, messages: Conversation, texts: Sequence[str]
  ) -> _Draft | row_files.BadRow:
    marks = None
    all_texts = [*(m['content'] for m in messages), *texts]
    if any(map(chat._marks.found_in, all_texts)):
      marks = chat._marks
      messages = [{**m, 'content': marks.put(m['content'])} for m in messages]
      texts = [marks.put(text) for text in texts]
    last = chat.closed(messages[-1]['content'])
    read = (lambda text: text) if marks is None else marks.read
    try:
      raw = chat.render(messages, ask=True, last=last)
      answers = [_answer(chat, messages, last, raw, text) for text in texts]
    except row_files.BadRow as error:
      return error
    return cls(
      chat=chat,
      messages=messages,
      marks=marks,
      text=read(raw),
      context=read(_context(chat, raw)),
      answers=[read(answer) for answer in answers],
      contents=texts,
      trimmed=[t not in a for t, a in zip(texts, answers, strict=True)],
    )

  def read(self, raw: str) -> str:
    return raw if self.marks is None else self.marks.read(raw)

  def row(
    self, prompt: tokenizers.Encoding, ends: Sequence[Sequence[int]]
  ) -> Row:
    ids, found = self._fitted(prompt)
    shown = [self.marks.take(t) if self.marks else t for t in self._turns()]
    found['prompts_trimmed'] = int(any(turn not in self.text for turn in shown))
    found['completions_trimmed'] = sum(self.trimmed)
    return Row(
      prompt=ids,
      completions=[self._ended(i, end) for i, end in enumerate(ends)],
      found=found,
    )

  def _turns(self) -> list[str]:
    return [m['content'] for m in self.messages]

  def _fitted(
    self, prompt: tokenizers.Encoding
  ) -> tuple[Sequence[int], dict[str, int]]:
    """Leaves out the oldest turns, then cuts the last one."""
    chat, messages, text = self.chat, self.messages, self.text
    found = {'prompts_cut': 0, 'prompts_turns_dropped': 0}
    if len(prompt.ids) <= chat.length:
      return prompt.ids, found
    while len(prompt.ids) > chat.length:
      shorter = _without_oldest(messages)
      if shorter is None:
        break
      messages = shorter
      found['prompts_turns_dropped'] = 1
      last = chat.closed(messages[-1]['content'])
      text = self.read(chat.render(messages, ask=True, last=last))
      [prompt] = chat.vocabulary.encode_rendered([text])
    excess = len(prompt.ids) - chat.length
    if excess <= 0:
      return prompt.ids, found
    found['prompts_cut'] = 1
    raw = chat.render(messages, ask=True, last=chat.closed(_SENTINEL))
    head, _, tail = map(self.read, raw.partition(_SENTINEL))
    first, last = len(head), len(text) - len(tail)
    within = [
      i for i, (a, b) in enumerate(prompt.offsets) if first <= a and b <= last
    ]
    fixed = text.startswith(head) and text.endswith(tail)
    if not fixed or excess >= len(within):
      raise row_files.BadRow(
        f"TASK_FEATURE_LENGTHS['inputs'] is {chat.length}, but the chat "
        'template and the turns before the last one take '
        f'{len(prompt.ids) - len(within) * fixed} tokens'
      )
    cut = within[:excess] if chat.cut_prompts == 'front' else within[-excess:]
    return prompt.ids[: cut[0]] + prompt.ids[cut[-1] + 1 :], found

  def _ended(self, index: int, ids: Sequence[int]) -> Sequence[int]:
    """Returns the tokens of a completion up to EOS."""
    vocabulary, ends = self.chat.vocabulary, self.chat.ends
    for length, id_ in enumerate(ids, 1):
      if id_ in ends:
        return ids[:length]
    special = [i for i in ids if i in self.chat._marks.special]
    if special:
      raise ValueError(
        f'The chat template {self.chat.template.path} ends a turn with '
        f'{vocabulary.special_tokens[special[-1]]!r}, which has the id '
        f'{special[-1]}, but EOS_ID is {", ".join(map(str, ends))}. Set EOS_ID '
        f'= {special[-1]}.'
      )
    tail = _tail(self.chat, self.messages)
    text = self.answers[index]
    if not tail.strip() and tail and text.endswith(tail):
      [ids] = self.chat._continuations([self.context], [text[: -len(tail)]])
    return [*ids, ends[0]]


def _answer(
  chat: Chat, messages: Conversation, last: str, prompt: str, text: str
) -> str:
  """Renders a completion and returns what follows the prompt."""
  asked = [*messages[:-1], {**messages[-1], 'content': last}]
  turn = {'role': 'assistant', 'content': text}
  whole = chat.render([*asked, turn], ask=False)
  if whole.startswith(prompt):
    return whole[len(prompt) :]
  # With the answer the template writes the turns before it in another way.
  turn = {'role': 'assistant', 'content': _SENTINEL}
  head, _, tail = chat.render([*asked, turn], ask=False).rpartition(_SENTINEL)
  gap = head.rpartition(_context(chat, prompt))[2]
  gap = gap if not gap.strip() else ''
  for content in (text, text.strip()):
    if whole.endswith(content + tail):
      return gap + content + tail
  raise row_files.BadRow(
    f'the chat template {chat.template.path} changes the text of the assistant'
  )


def _context(chat: Chat, raw: str) -> str:
  """Returns the end of a rendered prompt, from its last special token on."""
  start = max(map(raw.rfind, chat._marks.special.values()), default=-1)
  return raw[max(start, 0) :]


def _tail(chat: Chat, messages: Conversation) -> str:
  """Returns what the template writes after the turn of the assistant."""
  turn = {'role': 'assistant', 'content': _SENTINEL}
  return chat.render([*messages, turn], ask=False).rpartition(_SENTINEL)[2]


def _without_oldest(messages: Conversation) -> Conversation | None:
  """Leaves out the oldest turns up to another turn of the user.

  A system turn stays. None if there is only one exchange.
  """
  first = int(messages[0]['role'] == 'system')
  for i in range(first + 1, len(messages)):
    if messages[i]['role'] == 'user':
      return [*messages[:first], *messages[i:]]
  return None
