import json
import re
import shutil
import subprocess

import pytest

from ipo_md import report

POLICIES = ['supervised', 'ipo']
EVIL = '</script><b onclick="x()">&amp; <!--'


def results():
  matrix = [[0.5, 0.25], [0.75, 0.5]]
  interval = [[[0.5, 0.5], [0.1, 0.4]], [[0.6, 0.9], [0.5, 0.5]]]
  return {
    'policies': POLICIES,
    'judges': ['ground_truth'],
    'prompts': 3,
    'win_rate': {'ground_truth': matrix},
    'interval': {'ground_truth': interval},
    'mean_preference': {'ground_truth': matrix},
    'kl': {'supervised': 0.0, 'ipo': 2.5},
    'length': {'supervised': 14.0, 'ipo': 15.0},
    'agreement': {'graded_pairs': {'reward_model': [0.9, 0.8, 0.95, 100]}},
  }


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'report'
  folder.mkdir()
  (folder / 'results.json').write_text(json.dumps(results()))
  with (folder / 'completions.jsonl').open('w') as file:
    for number in range(3):
      line = {
        'prompt': f'{EVIL} prompt {number}',
        'completions': {
          name: {'text': f'{EVIL} {name} {number}', 'score': {'facts_kept': 1}}
          for name in POLICIES
        },
        'preference': {'ground_truth': [number / 2]},
      }
      file.write(json.dumps(line) + '\n')
  run = tmp_path / 'ipo'
  run.mkdir()
  (run / 'config.gin').write_text(f"MODEL_DIR = '{run}'\nTAU = 0.1\n")
  with (run / 'metrics.jsonl').open('w') as file:
    for step in range(1, 1001):
      loss = float('nan') if step == 500 else 1 / step
      file.write(json.dumps({'step': step, 'loss': loss, 'kl': 1.0}) + '\n')
  return folder


def embedded(page, name):
  pattern = rf'<script type="application/json" id="{name}">(.*?)</script>'
  return json.loads(re.search(pattern, page, re.DOTALL).group(1))


def test_page_holds_the_data_and_nothing_of_the_machine(folder):
  path = report.write(str(folder), {'ipo': str(folder.parent / 'ipo')})
  page = (folder / 'index.html').read_text()
  assert path == str(folder / 'index.html')
  data = embedded(page, 'data')
  assert data['results'] == results()
  assert data['pages'] == [3]
  prompts = embedded(page, 'page-0')
  assert prompts[2]['completions']['ipo']['text'] == f'{EVIL} ipo 2'
  run = data['runs']['ipo']
  assert run['gin'] == "MODEL_DIR = 'DIR/ipo'\nTAU = 0.1\n"
  assert run['metrics']['loss'][-1] == [1000, 0.001]
  assert 200 < len(run['metrics']['loss']) <= 400
  assert str(folder.parent) not in page
  assert 'http' not in page.replace('http-equiv', '').replace(
    'http://www.w3.org/2000/svg', ''
  )
  report.write(str(folder), {'ipo': str(folder.parent / 'ipo')})
  assert (folder / 'index.html').read_text() == page


def test_text_cannot_leave_its_element(folder):
  report.write(str(folder))
  page = (folder / 'index.html').read_text()
  assert '<b onclick' not in page
  assert page.count('</script>') == 3  # data, one page of prompts, the program
  assert '{{' not in page


def test_what_does_not_fit_is_counted(folder, monkeypatch):
  monkeypatch.setattr(report, '_PROMPTS_PER_PAGE', 2)
  monkeypatch.setattr(report, '_MAX_BYTES', 800)
  report.write(str(folder))
  data = embedded((folder / 'index.html').read_text(), 'data')
  assert data['pages'] == [2]
  assert data['leftOut'] == 1


def test_contradictions_are_errors():
  with pytest.raises(ValueError, match=r"twice: \['ipo', 'ipo'\]"):
    report.page({**results(), 'policies': ['ipo', 'ipo']}, [], {})
  with pytest.raises(ValueError, match="win_rate of judge 'reward_model'"):
    report.page({**results(), 'judges': ['reward_model']}, [], {})


@pytest.mark.skipif(not shutil.which('chromium'), reason='needs chromium')
def test_page_in_a_browser(folder):
  path = report.write(str(folder), {'ipo': str(folder.parent / 'ipo')})
  chromium = ['chromium', '--headless=new', '--no-sandbox', '--disable-gpu']
  shown = subprocess.run(
    [
      *chromium,
      f'--user-data-dir={folder}/profile',
      '--enable-logging=stderr',
      '--virtual-time-budget=2000',
      '--dump-dom',
      f'file://{path}#prompt=1',
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert 'CONSOLE' not in shown.stderr
  body = re.sub(r'<script.*?</script>', '', shown.stdout, flags=re.DOTALL)
  assert 'ipo 1</p>' in body  # the prompt of the link
  assert 'ipo 2</p>' not in body
  assert '<b onclick' not in body
  assert body.count('<figure>') == 2  # loss, kl
  assert '0.600 to 0.900' in body
