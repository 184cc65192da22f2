"""Tests of the task of code: programs from completions, and their tests."""

import gzip
import json

import pytest
import seqio

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.evaluation import task_metrics
from tasks import code_problems
from tasks.lib import json_lines
from tasks.lib import sandbox

pytestmark = pytest.mark.usefixtures('needs_a_sandbox')

VOCABULARY = seqio.ByteVocabulary()
ADD = {
  'task_id': 'HumanEval/0',
  'prompt': 'import math\n\n\n'
  'def floor(x: float):\n    return math.floor(x)\n\n\n'
  'def add(x: float, y: float) -> int:\n    """Returns floor(x + y)."""\n',
  'canonical_solution': '    return floor(x + y)\n',
  'test': "METADATA = {'author': 'x'}\n\n\ndef check(candidate):\n"
  '    assert candidate(1, 2) == 3\n    assert candidate(0.5, 0.7) == 1\n',
  'entry_point': 'add',
}
TWICE = {
  'task_id': 'HumanEval/1',
  'prompt': 'def twice(text):\n    """Returns a text two times."""\n',
  'test': 'def check(candidate):\n    assert candidate("a") == "aa"\n',
  'entry_point': 'twice',
}
RIGHT = ADD['canonical_solution']


@pytest.mark.parametrize(
  'completion',
  [
    RIGHT,
    RIGHT[1:],  # as SentencePiece decodes it
    f'{RIGHT}\n\ndef other(): return 1 +',
    f'{RIGHT}\nif __name__ == "__main__":\n  add(',
    f'{RIGHT}\n# That was\nall.',
    f'{RIGHT}\nprint(add(1, 2)',
    f'{RIGHT}\nclass A:',
    f'{RIGHT}\n```\nThat was all.',
    '    z = x + y\n\n    return floor(z)\n',
    f'Here it is:\n```python\n{ADD["prompt"]}{RIGHT}```\nThat was all.',
    # The function alone, which needs the imports and functions of the prompt.
    '```python\ndef add(x, y):\n  return floor(x + y)\n```',
    '```\ndef add(x, y):\n  return math.floor(x + y)\n\nadd(1, 2)\n```',
    '```py\nfloor(1)\n```\n```py\ndef add(x, y):\n  return floor(x + y)\n```',
    '```python\ndef add(x, y):\n  return floor(x + y)',
    f'```python\n{RIGHT}```',
  ],
)
def test_right_completions(completion):
  outcome = sandbox.run(code_problems.program(ADD, completion))
  assert outcome == sandbox.Outcome(passed=True)


@pytest.mark.parametrize(
  ('completion', 'reason'),
  [
    ('    return x + y\n', 'AssertionError'),
    ('', 'AssertionError'),
    ('    return floor(', 'SyntaxError'),
    ('    return flor(x + y)\n', 'NameError'),
    ('I cannot help with that.', 'SyntaxError'),
    ('```python\ndef sub(x, y):\n  return x - y\n```', 'AssertionError'),
    ('    return 1\n\nimport sys; sys.exit(0)', 'SystemExit'),
    ('    import os\n    os._exit(0)', 'too early'),
    ('    raise SystemExit\n', 'SystemExit'),
    ('    exit = quit = print\n    print("passed")\n    return 0', 'Assertion'),
    (
      '    return 1\n\ncheck = lambda candidate: None\n'
      'import builtins; builtins.exit = print',
      'AssertionError',
    ),
    ('    open("/root/a", "w")', 'Error'),
    ('    return bytearray(10 * 2**30)', 'MemoryError'),
  ],
)
def test_wrong_completions(completion, reason):
  outcome = sandbox.run(code_problems.program(ADD, completion))
  assert not outcome.passed
  assert reason in outcome.reason


@pytest.fixture(name='load')
def load_fixture(tmp_path, monkeypatch):
  def load(*rows, compress=False):
    path = tmp_path / f'problems.jsonl{".gz" * compress}'
    data = '\n'.join(json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(data) if compress else data)
    monkeypatch.setenv('CODE_FILE', str(path))
    return dataset_lib.load(
      mixture_or_task_name='code_problems',
      task_feature_lengths={'inputs': 256, 'targets': 64},
      split='test',
      prompt_format=prompt_format.PromptFormat(),
      vocabulary=VOCABULARY,
    )

  code_problems._problems.cache_clear()
  return load


def _measure(dataset, completions):
  count = len(completions)
  measure = task_metrics.of_task(
    dataset, count, mixture_or_task_name='code_problems'
  )
  return [row['pass_rate'] for row in measure([''] * count, completions)]


@pytest.mark.parametrize('compress', [False, True])
def test_completions(load, compress):
  dataset = load(ADD, TWICE, compress=compress)
  assert _measure(dataset, [RIGHT, '    return 2 * text']) == [100, 100]
  assert _measure(dataset, ['    return 2 * text', RIGHT]) == [0, 0]
  metric = code_problems.pass_rate(
    ['HumanEval/0', 'HumanEval/0', 'HumanEval/1'], [RIGHT, '', RIGHT]
  )
  assert metric == {'pass_rate': pytest.approx(100 / 3)}


def test_a_target_that_the_vocabulary_changes_is_refused(load):
  load(ADD)
  with pytest.raises(ValueError, match="'humaneval/0' is no .*: VOCABULARY"):
    code_problems.pass_rate(['humaneval/0'], [RIGHT])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'task_id': 'a '}, "'task_id' is empty or has spaces"),
    ({'prompt': None}, "'prompt' is"),
    ({'entry_point': 'a b'}, "'entry_point' is no name"),
    ({'test': 'assert add(1, 2)'}, "'test' does not define check"),
  ],
)
def test_bad_rows(change, message):
  with pytest.raises(json_lines.BadRow, match=message):
    code_problems._example(ADD | change)


def test_a_task_id_names_one_problem(load):
  with pytest.raises(ValueError, match="jsonl:2: task_id 'HumanEval/0' is not"):
    load(ADD, ADD)


def test_what_is_missing_is_named(load, tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  sandbox.check.cache_clear()
  try:
    with pytest.raises(ValueError, match='apt-get install bubblewrap'):
      load(ADD)
  finally:
    sandbox.check.cache_clear()
  monkeypatch.delenv('CODE_FILE')
  with pytest.raises(ValueError, match='CODE_FILE is not set'):
    code_problems._files('test')
