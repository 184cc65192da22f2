"""Tests of the reading of a response's body."""

import json

import pytest

from ipo_md.judges import chat_response
from ipo_md.judges import retry as retry_lib


def body(message, finish='stop', **choice):
  choice = {'message': message, 'finish_reason': finish, **choice}
  return json.dumps({'choices': [choice]})


@pytest.mark.parametrize(
  ('content', 'text'),
  [
    ('1', '1'),
    ([{'type': 'text', 'text': '1'}], '1'),
    ([{'type': 'output_text', 'text': 'Summary '}, '1'], 'Summary 1'),
    (
      [
        {'type': 'thinking', 'thinking': [{'type': 'text', 'text': '2'}]},
        {'type': 'text', 'text': '1'},
      ],
      '1',
    ),
  ],
)
def test_a_content_may_be_a_list_of_parts(content, text):
  answer = chat_response.read(body({'content': content}))
  assert (answer.text, answer.refusal, answer.incomplete) == (text, None, None)


@pytest.mark.parametrize(
  'message',
  [
    {'content': None, 'refusal': 'No.'},
    {'content': [{'type': 'refusal', 'refusal': 'No.'}]},
  ],
)
def test_a_refusal(message):
  answer = chat_response.read(body(message))
  assert (answer.refusal, answer.incomplete) == ('No.', None)


CALL = {'function': {'name': 'choose', 'arguments': '{"better": 1}'}}


@pytest.mark.parametrize(
  ('message', 'finish', 'incomplete'),
  [
    ({'content': '1'}, 'stop', None),
    ({'content': '1'}, None, None),
    ({'content': '1'}, 'eos', None),
    ({'content': '1', 'tool_calls': []}, 'stop', None),
    ({'content': '1', 'refusal': None}, 'stop', None),
    ({'content': 'Summary'}, 'length', "finish_reason 'length'"),
    ({'content': ''}, 'length', "finish_reason 'length'"),
    ({'content': None}, 'MAX_TOKENS', "finish_reason 'max_tokens'"),
    ({'content': 'Sum'}, 'content_filter', "finish_reason 'content_filter'"),
    ({'content': None, 'tool_calls': [CALL]}, 'tool_calls', 'a tool call'),
    ({'content': '', 'function_call': CALL}, 'stop', 'a tool call'),
  ],
)
def test_whether_an_answer_is_whole(message, finish, incomplete):
  assert chat_response.read(body(message, finish)).incomplete == incomplete


@pytest.mark.parametrize(
  'content',
  [
    '',
    '1',
    'null',
    '[]',
    '{}',
    '{"choices": null}',
    '{"choices": [null]}',
    '{"choices": [{"message": {"content": 1}}]}',
    '{"choices": [{"message": {"content": [{"type": "text"}]}}]}',
    '{"choices": [{"message": {"content": [3]}}]}',
    body({'content': '1'})[:-9],
    body({'content': '1'}, 'error'),
    body({'content': '1'}, 'insufficient_system_resource'),
    body({'content': ' '}),
    body({}),
  ],
)
def test_another_attempt_may_cure_a_malformed_response(content):
  with pytest.raises(retry_lib.TransientError):
    chat_response.read(content)


@pytest.mark.parametrize(
  ('content', 'status'),
  [
    ({'error': {'code': 502}}, 502),
    ({'error': {'code': '429'}}, 429),
    ({'error': {'code': 'server_error'}}, 500),
    ({'error': 'down'}, 500),
    ({'object': 'error', 'code': 40001}, 500),
    ({'choices': [{'error': {'code': 503}}]}, 503),
    ([{'error': {'code': 401}}], 401),
  ],
)
def test_an_error_names_its_status(content, status):
  with pytest.raises(chat_response.BodyError) as error:
    chat_response.read(json.dumps(content))
  assert error.value.status == status


@pytest.mark.parametrize(
  ('error', 'permanent'),
  [
    ({'code': 'insufficient_quota'}, True),
    ({'type': 'insufficient_quota', 'code': None}, True),
    ({'code': 'rate_limit_exceeded', 'type': 'tokens'}, False),
    ({'status': 'RESOURCE_EXHAUSTED', 'code': 429}, False),
    ({'status': 'PERMISSION_DENIED', 'code': 403}, True),
    ({'type': 'overloaded_error'}, False),
    ({'message': 'insufficient_quota'}, False),
    ({}, False),
    # As a body has them.
    (chat_response.error_of('{"error": "insufficient_quota"}'), True),
    (chat_response.error_of('{"error": "slow down"}'), False),
    (
      chat_response.error_of(
        '{"code": "insufficient_balance", "message": "x"}'
      ),
      True,
    ),
    (
      chat_response.error_of('{"code": "insufficient_quota", "error": "x"}'),
      True,
    ),
  ],
)
def test_which_errors_no_waiting_cures(error, permanent):
  assert (chat_response.permanent_kind(error) is not None) is permanent
