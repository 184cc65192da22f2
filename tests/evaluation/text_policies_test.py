"""Checks comparisons with policies of another vocabulary, given as texts."""

import json

import comparison
import pytest

from ipo_md.data import dataset as dataset_lib
from ipo_md.judges import host
from tasks.mini_tldr import tasks
from tasks.mini_tldr import truth as truth_lib


@pytest.fixture(name='inferred')
def inferred_fixture(tmp_path):
  """Makes the output of gin/runs/infer.gin, with other spaces and cases."""
  prompts = comparison.dataset('mini_tldr_prompts', True)
  folder = tmp_path / 'inferred'
  folder.mkdir()
  with (folder / 'completions.jsonl').open('w') as file:
    for task, row in dataset_lib.first_rows(prompts, comparison.EXAMPLES):
      ids = prompts.examples[task].prompts.row(row).tolist()
      text = tasks.VOCABULARY.decode(ids).upper().replace(' ', '\n')
      completion = {'text': f'so {row}', 'tokens': 3, 'ended': True}
      line = {'index': row, 'prompt': text, 'completions': [completion]}
      file.write(json.dumps(line) + '\n')
  return folder


def test_texts_of_another_vocabulary(tmp_path, paths, inferred):
  arguments = {
    'policies': {'supervised': paths['supervised'], 'other': str(inferred)},
    'judges': {'ground_truth': host.TextJudge(truth_lib.preference)},
    'best_of': None,
    'agreement': None,
  }
  comparison.compare(tmp_path / 'out', paths, **arguments)
  found = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert found['length']['other'] == 2
  assert found['kl'].keys() == {'supervised'}
  line = json.loads((tmp_path / 'out' / 'completions.jsonl').open().readline())
  assert line['completions']['other']['text'] == 'so 0'
  learned = {
    'judges': {'reward_model': comparison.learned_judge(paths['judge'])}
  }
  with pytest.raises(ValueError, match="'reward_model'.*'other'.*vocabulary"):
    comparison.compare(tmp_path / 'b', paths, **arguments | learned)
  path = inferred / 'completions.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  for broken, message in (
    (
      lines[1:] + lines[:1],
      r"POLICIES\['other'\].*prompt 0 is .*, but here it is ",
    ),
    (lines[:-1], 'completions of 11 prompts, but EVAL_EXAMPLES is 12'),
    (['{"prompt": 1}\n', *lines[1:]], r'line 1 of .*infer.gin'),
  ):
    path.write_text(''.join(broken))
    with pytest.raises(ValueError, match=message):
      comparison.compare(tmp_path / 'c', paths, **arguments)


def test_texts_alone_and_a_lone_policy(tmp_path, paths, inferred):
  comparison.compare(
    tmp_path / 'out',
    paths,
    policies={'other': str(inferred)},
    reference_checkpoint_path=None,
    judges={'ground_truth': host.TextJudge(truth_lib.preference)},
    best_of=None,
    agreement=None,
  )
  found = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert found['win_rate'] == {'ground_truth': [[0.5]]}
  assert found['kl'] == {}
