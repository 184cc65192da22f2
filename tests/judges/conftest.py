"""Fixtures: a rating server in this process and a judge that asks it."""

import threading

import pytest

from ipo_md.judges import chat_client
from ipo_md.judges import http as http_judge
from tests.judges import rater_server


@pytest.fixture(name='server')
def server_fixture():
  with rater_server.Server() as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture(name='judge')
def judge_fixture(server, tmp_path, monkeypatch):
  """Returns a function that makes a judge with the server as its endpoint.

  Further arguments of that function override those of `Endpoint`.
  """
  monkeypatch.setenv('RATER_KEY', f'{rater_server.KEY}\n')

  def make(parameters=rater_server.LOG_PROBS, neither='error', **changes):
    endpoint = chat_client.Endpoint(
      **{
        'base_url': server.base_url,
        'model': 'rater-7b',
        'api_key_variable': 'RATER_KEY',
        'parameters': parameters,
        'cache': str(tmp_path / 'cache' / 'answers.sqlite'),
        'concurrency': 4,
        'timeout': 20,
        'first_delay': 0.02,
      }
      | changes
    )
    return http_judge.HttpJudge(
      endpoint=endpoint,
      prompt=rater_server.PROMPT,
      neither=neither,
      prices=(2.0, 8.0),
    )

  return make
