"""Reads the body of a response of an OpenAI-compatible endpoint.

Only a whole answer is kept for good. What was cut off, filtered or is a tool
call says in `Answer.incomplete` why it is not whole. A response without an
answer (an empty text, the finish_reason 'error', JSON that ends too early, a
page of HTML) is a failure that another attempt may cure. An error that comes
with the status 200 is treated as the status that it names.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
import re
from typing import Any

from ipo_md.judges import retry as retry_lib

# Reading raises these, also where JSON nests too deep or a number is too large.
_UNREADABLE = (
  LookupError,
  AttributeError,
  TypeError,
  ValueError,
  OverflowError,
  RecursionError,
)
_FAILED = (
  'error',
  'abort',
  'aborted',
  'cancelled',
  'timeout',
  'insufficient_system_resource',
)
_CUT = ('length', 'max_tokens', 'content_filter', 'safety', 'recitation')
_PERMANENT = re.compile(
  r'insufficient_(?:\w+_)?(?:quota|balance|credits?|funds)|exceeded_current_quota'
  r'|billing|credit_balance|payment_required|deactivated|suspended|terminated'
  r'|invalid_api_key|authentication_error|permission_(?:denied|error)'
)


@dataclasses.dataclass(frozen=True)
class Answer:
  """The answer of a language model to one prompt.

  Attributes:
    text: The text, empty if the model gave none.
    tokens: Each token of the text with the log-probabilities of its
      alternatives and of itself, or None if the server returns none.
    usage: Numbers of prompt tokens and of answer tokens as the server counts
      them, or 0 if it does not.
    refusal: What the model said instead of an answer, or None.
    incomplete: Why the answer is not whole, or None if it is.
  """

  text: str
  tokens: Sequence[tuple[str, Mapping[str, float]]] | None
  usage: tuple[int, int]
  refusal: str | None = None
  incomplete: str | None = None


class EmptyError(retry_lib.TransientError):
  """The text of an answer is empty.

  Attributes:
    answer: The answer.
  """

  def __init__(self, answer: Answer):
    super().__init__('an answer without text')
    self.answer = answer


class BodyError(Exception):
  """A response with the status 200 is an error.

  Attributes:
    status: Status that the error names, or 500.
    fields: The object `error` of the response, such as its message and code.
  """

  def __init__(self, fields: Mapping[str, Any]):
    super().__init__()
    code = str(fields.get('code'))
    self.status = int(code) if re.fullmatch(r'[45]\d\d', code) else 500
    self.fields = fields


def read(content: str) -> Answer:
  """Reads the answer in the body of a response.

  Raises:
    BodyError: The body is an error.
    TransientError: The body is malformed, or the model failed to answer.
  """
  if error := error_of(content):
    raise BodyError(error)
  try:
    return _answer(json.loads(content))
  except _UNREADABLE as error:
    excerpt = ' '.join(content.split())[:100]
    if re.match(r'\s*<(?:!doctype|html)', content, re.I):
      kind = 'a page of HTML instead of an answer (is BASE_URL right?)'
    else:
      kind = f'a malformed response ({error!r})'
    raise retry_lib.TransientError(f'{kind}: {excerpt}') from None


def error_of(content: str) -> Mapping[str, Any]:
  """Returns the fields of the error in a body, empty if there is none."""
  try:
    body = json.loads(content)
  except (ValueError, RecursionError):
    return {}
  if isinstance(body, list) and body:
    body = body[0]
  if not isinstance(body, Mapping):
    return {}
  choices = body.get('choices')
  choice = choices[0] if isinstance(choices, list) and choices else None
  for holder in (body, choice):
    error = holder.get('error') if isinstance(holder, Mapping) else None
    if error:
      found = (
        error
        if isinstance(error, Mapping)
        else {'message': error, 'type': error}
      )
      # Some servers have the kind of the error beside it.
      kind = {k: body[k] for k in ('code', 'type', 'status') if k in body}
      return kind | dict(found)
  if body.get('object') == 'error':
    return body
  return body if {'code', 'message'} <= body.keys() and not choices else {}


def permanent_kind(error: Mapping[str, Any]) -> str | None:
  """Returns the server's name of an error that no waiting cures, or None."""
  for field in ('code', 'type', 'status'):
    name = str(error.get(field) or '')
    if _PERMANENT.search(name.lower()):
      return name
  return None


def _answer(response: Mapping[str, Any]) -> Answer:
  choice = response['choices'][0]
  message = choice['message']
  finish = str(choice.get('finish_reason') or '').lower()
  if finish in _FAILED:
    raise retry_lib.TransientError(f'the finish_reason {finish!r}')
  text, refusal = _content(message.get('content'))
  refusal = message.get('refusal') or refusal
  called = message.get('tool_calls') or message.get('function_call')
  incomplete = None
  if finish in _CUT:
    incomplete = f'finish_reason {finish!r}'
  elif called and not text.strip():
    incomplete = 'a tool call'
  listed = (choice.get('logprobs') or {}).get('content')
  usage = response.get('usage') or {}
  answer = Answer(
    text=text,
    tokens=None if listed is None else [_token(item) for item in listed],
    usage=(
      int(usage.get('prompt_tokens') or 0),
      int(usage.get('completion_tokens') or 0),
    ),
    refusal=None if refusal is None else str(refusal),
    incomplete=incomplete,
  )
  if not text.strip() and not refusal and not incomplete:
    raise EmptyError(dataclasses.replace(answer, incomplete='an empty text'))
  return answer


def _content(content: Any) -> tuple[str, str | None]:
  """Returns the text of a content, and the refusal among its parts or None."""
  if content is None or isinstance(content, str):
    return content or '', None
  if not isinstance(content, list):
    raise TypeError('the content is neither a text nor a list of parts')
  texts, refusal = [], None
  for part in content:
    if isinstance(part, str):
      texts.append(part)
    elif part.get('type') in ('text', 'output_text'):
      texts.append(part['text'])
    elif part.get('type') == 'refusal':
      refusal = part['refusal']
  return ''.join(texts), refusal


def _token(item: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
  listed = [item, *(item.get('top_logprobs') or [])]
  found = {other['token']: float(other['logprob']) for other in listed}
  # The log-probability of an alternative may be -inf.
  if not math.isfinite(found[item['token']]) or max(found.values()) > 1e-3:
    raise ValueError('a log-probability is not finite or exceeds 0')
  return item['token'], found
