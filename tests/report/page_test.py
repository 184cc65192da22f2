"""Checks the page: its data, its files and its behaviour in a browser."""

import csv
import html
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from ipo_md.report import figures
from ipo_md.report import page as page_lib

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
    'calibration': {
      'graded_pairs': {
        'reward_model': {
          'bins': [{'confidence': 0.6, 'accuracy': 0.7, 'count': 100}],
          'ece': 0.1,
        }
      }
    },
    'by_length': {
      'graded_pairs': {
        'reward_model': [{'low': -2, 'high': 4, 'accuracy': 0.5, 'count': 9}]
      }
    },
  }


def sweep():
  """Returns two settings of one algorithm, of which the second is selected."""
  return {
    'judge': 'ground_truth',
    'seeds': [0],
    'splits': ['validation', 'test'],
    'runs': [
      {
        'name': f'ipo_TAU={tau}_SEED=0',
        'algorithm': 'ipo',
        'values': {'TAU': tau, 'MIXTURE_COEFS': '(0.0, 0.25)'},
        'seed': 0,
        'selected': tau == '1.0',
        'step': None,
        'against': 'supervised',
        'measured': {f'ipo_TAU={tau}_SEED=0': [float(tau) / 2, 0.1, 0.6]},
      }
      for tau in ('0.1', '1.0')
    ],
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
  for name in ('ipo', *(run['name'] for run in sweep()['runs'])):
    run = tmp_path / name
    run.mkdir()
    (run / 'config.gin').write_text(f"MODEL_DIR = '{run}'\nTAU = 0.1\n")
    (run / 'versions.json').write_text('{"jax": "1.2", "commit": "c0ffee"}')
    with (run / 'metrics.jsonl').open('w') as file:
      for step in range(1, 1001):
        loss = float('nan') if step == 500 else 1 / step
        file.write(json.dumps({'step': step, 'loss': loss, 'kl': 1.0}) + '\n')
      for step in (500, 1000):
        line = {'step': step, 'win_rate': step / 2000, 'eval_kl': step / 100}
        file.write(json.dumps(line) + '\n')
  return folder


def embedded(page, name):
  pattern = rf'<script type="application/json" id="{name}">(.*?)</script>'
  return json.loads(re.search(pattern, page, re.DOTALL).group(1))


def test_page_holds_the_data_but_no_local_paths(folder):
  path = page_lib.write(str(folder), {'ipo': str(folder.parent / 'ipo')})
  page = (folder / 'index.html').read_text()
  assert path == str(folder / 'index.html')
  data = embedded(page, 'data')
  assert data['results'] == results()
  assert data['pages'] == [3]
  prompts = embedded(page, 'page-0')
  assert prompts[2]['completions']['ipo']['text'] == f'{EVIL} ipo 2'
  run = data['runs']['ipo']
  assert run['gin'] == "# config.gin\nMODEL_DIR = 'DIR/ipo'\nTAU = 0.1\n"
  assert run['versions'] == {'jax': '1.2', 'commit': 'c0ffee'}
  (loss,) = (f for f in data['figures'] if f['name'] == 'curve_loss')
  points = loss['series'][0]['points']
  assert points[-1] == [1000, 0.001]
  assert 200 < len(points) <= 400
  assert str(folder.parent) not in page
  assert 'http' not in page.replace('http-equiv', '').replace(
    'http://www.w3.org/2000/svg', ''
  )
  page_lib.write(str(folder), {'ipo': str(folder.parent / 'ipo')})
  assert (folder / 'index.html').read_text() == page


def test_text_cannot_escape_its_element(folder):
  page_lib.write(str(folder))
  page = (folder / 'index.html').read_text()
  assert '<b onclick' not in page
  assert page.count('</script>') == 3  # Data, prompts, program.
  assert '{{' not in page


def test_prompts_beyond_the_limit_are_counted(folder, monkeypatch):
  monkeypatch.setattr(page_lib, '_PROMPTS_PER_PAGE', 2)
  monkeypatch.setattr(page_lib, '_MAX_BYTES', 800)
  page_lib.write(str(folder))
  data = embedded((folder / 'index.html').read_text(), 'data')
  assert data['pages'] == [2]
  assert data['leftOut'] == 1


def test_contradictions_are_errors():
  with pytest.raises(ValueError, match=r"twice: \['ipo', 'ipo'\]"):
    page_lib.check({**results(), 'policies': ['ipo', 'ipo']})
  with pytest.raises(ValueError, match="win_rate of judge 'reward_model'"):
    page_lib.check({**results(), 'judges': ['reward_model']})


def test_every_figure_has_its_png_and_csv(folder):
  (folder / 'sweep.json').write_text(json.dumps(sweep()))
  page_lib.write(str(folder), {'ipo': str(folder.parent / 'ipo')})
  data = embedded((folder / 'index.html').read_text(), 'data')
  names = {figure['name'] for figure in data['figures']}
  assert names == {
    'frontier_ground_truth',
    'frontier_along_runs',
    'sweep_TAU',
    'sweep_MIXTURE_COEFS',
    *(f'curve_{name}' for name in ('loss', 'win_rate', 'eval_kl', 'kl')),
    'calibration_graded_pairs',
    'length_graded_pairs',
  }
  for name in (*names, 'win_rate_ground_truth'):
    png = (folder / 'figures' / f'{name}.png').read_bytes()
    assert png.startswith(b'\x89PNG')
  rows = list(csv.reader((folder / 'figures' / 'sweep_TAU.csv').open()))
  assert rows == [
    ['series', 'x', 'y', 'low', 'high'],
    ['ipo seed 0, MIXTURE_COEFS (0.0, 0.25)', '0.1', '0.05', '0.1', '0.6'],
    ['ipo seed 0, MIXTURE_COEFS (0.0, 0.25)', '1.0', '0.5', '0.1', '0.6'],
  ]
  (figure,) = (f for f in data['figures'] if f['name'] == 'frontier_along_runs')
  assert figure['series'][1]['points'] == [[5.0, 0.25], [10.0, 0.5]]
  assert [s['run'] for s in figure['series']] == [
    'ipo_TAU=0.1_SEED=0',
    'ipo_TAU=1.0_SEED=0',
    'ipo',
  ]
  before = {p: p.read_bytes() for p in (folder / 'figures').iterdir()}
  page_lib.write(str(folder), {'ipo': str(folder.parent / 'ipo')})
  assert before == {p: p.read_bytes() for p in (folder / 'figures').iterdir()}


def test_a_comparison_with_the_baseline_alone(folder):
  """Checks that pairs that were not judged may be null."""
  found = results()
  for name in ('win_rate', 'interval', 'mean_preference'):
    found[name]['ground_truth'][0][1] = None
    found[name]['ground_truth'][1][0] = None
  (folder / 'results.json').write_text(json.dumps(found))
  page_lib.write(str(folder))
  assert (folder / 'figures' / 'win_rate_ground_truth.png').exists()


@pytest.mark.parametrize(
  ('value', 'expected'),
  [('0.1', 0.1), ('(0.125, 0.25)', 0.25), ('1e-4', 1e-4), ("'x'", None)],
)
def test_the_number_of_an_axis(value, expected):
  assert figures.number(value) == expected


# Clicks and types as a reader would, and records what the page shows.
DRIVE = """
const seen = {};
const press = (node, key) => node.dispatchEvent(
  new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
const text = () => document.querySelector('#prompt .prompt').textContent;
seen.linked = text();
press(document.body, 'n');
seen.next = text();
seen.hash = location.hash;
byId('text').value = 'ipo 0';
byId('filters').dispatchEvent(new Event('input'));
seen.found = byId('found').textContent;
byId('text').value = '';
document.querySelectorAll('.matrix button')[1].click();
seen.outcome = [byId('row').value, byId('outcome').value, text()];
const lines = () => document.querySelectorAll('#curves svg > g').length;
seen.selected = lines();
const buttons = [...byId('legend-buttons').querySelectorAll('button')];
for (const button of buttons) {
  button.click();
  seen[button.textContent] = lines();
}
byId('more-curves').open = true;
drawFigures();
seen.more = byId('other-curves').childElementCount;
const svg = document.querySelector('#sweep-figures svg');
press(svg, 'ArrowLeft');
seen.readout = svg.nextSibling.textContent;
seen.wide = document.documentElement.scrollWidth <= innerWidth;
seen.requests = performance.getEntriesByType('resource').length;
seen.ms = performance.timing.domContentLoadedEventEnd -
  performance.timing.navigationStart;
const out = document.createElement('output');
out.id = 'seen';
out.textContent = JSON.stringify(seen);
document.body.append(out);
"""
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


def browse(path: pathlib.Path, width: int) -> tuple[dict, str]:
  """Returns what `DRIVE` saw and the HTML; the console must be empty."""
  page = path.read_text().replace('</body>', f'<script>{DRIVE}</script></body>')
  driven = path.with_name('driven.html')
  driven.write_text(page)
  shown = subprocess.run(
    [
      CHROMIUM,
      '--headless=new',
      '--no-sandbox',
      '--disable-gpu',
      f'--user-data-dir={path.parent}/profile',
      '--enable-logging=stderr',
      '--virtual-time-budget=5000',
      f'--window-size={width},900',
      '--dump-dom',
      f'file://{driven}#prompt=1',
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert 'CONSOLE' not in shown.stderr, shown.stderr
  body = re.sub(r'<script.*?</script>', '', shown.stdout, flags=re.DOTALL)
  seen = re.search(r'<output id="seen">(.*?)</output>', body, re.DOTALL)
  return json.loads(html.unescape(seen.group(1))), body


@pytest.mark.skipif(not CHROMIUM, reason='needs Chromium in PATH')
@pytest.mark.parametrize('width', [500, 1280])
def test_page_in_a_browser(folder, width):
  (folder / 'sweep.json').write_text(json.dumps(sweep()))
  path = page_lib.write(str(folder), {'ipo': str(folder.parent / 'ipo')})
  seen, body = browse(pathlib.Path(path), width)
  assert seen['linked'] == f'{EVIL} prompt 1'
  assert seen['next'] == f'{EVIL} prompt 2'
  assert seen['hash'] == '#prompt=2'
  assert seen['found'] == '1 of 3 prompts match'
  assert seen['outcome'] == ['ipo', 'win', f'{EVIL} prompt 0']
  main = 3  # The curves loss, win_rate and eval_kl.
  assert seen['selected'] == main
  assert seen['All'] == 3 * main
  assert seen['None'] == 0
  assert seen['Selected'] == main
  assert seen['more'] == 1  # The curve kl.
  assert seen['readout'] == (
    'TAU 1: ipo seed 0, MIXTURE_COEFS (0.0, 0.25) 0.5 (0.1 to 0.6)'
  )
  assert seen['wide']
  assert seen['requests'] == 0
  assert '<b onclick' not in body
  assert '0.600 to 0.900' in body
  assert 'commit c0ffee; jax 1.2' in body
