"""Measures the size of a large report, and how fast its page is drawn.

  python tests/benchmarks/report.py [--completions=100000]

The report has ten policies, summaries of 25 words and prompts of 60 words.
Chromium must be in PATH. Prints one JSON line: megabytes of the page, the
number of prompts in it and left out, and seconds from the start of loading
until the page is drawn.
"""

import argparse
import json
import pathlib
import random
import re
import subprocess
import tempfile

from ipo_md.report import page as page_lib

_POLICIES = [f'policy_{i}' for i in range(10)]
_WORDS = (
  'the',
  'ship',
  'of',
  'Anna',
  'left',
  'for',
  'Oslo',
  'with',
  'two',
  'dogs',
)
_MEASURE = """<script>
const out = document.createElement('output');
out.id = 'seen';
out.textContent = JSON.stringify(
  {prompts: total, left_out: data.leftOut, seconds: performance.now() / 1000});
document.body.append(out);
</script></body>"""


def fill(folder: pathlib.Path, prompts: int) -> None:
  """Writes results.json and completions.jsonl."""
  size, judge = len(_POLICIES), 'judge'
  matrix = {judge: [[0.5] * size] * size}
  results = {
    'policies': _POLICIES,
    'judges': [judge],
    'prompts': prompts,
    'win_rate': matrix,
    'mean_preference': matrix,
    'interval': {judge: [[[0.4, 0.6]] * size] * size},
  }
  (folder / 'results.json').write_text(json.dumps(results))
  rng = random.Random(0)
  text = lambda words: ' '.join(rng.choices(_WORDS, k=words))
  with (folder / 'completions.jsonl').open('w') as file:
    for _ in range(prompts):
      line = {
        'prompt': text(60),
        'completions': {
          name: {'text': text(25), 'score': {'length': 25}}
          for name in _POLICIES
        },
        'preference': {
          judge: [round(rng.random(), 6) for _ in range(size * (size - 1) // 2)]
        },
      }
      file.write(json.dumps(line) + '\n')


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--completions', type=int, default=100_000)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    fill(folder, args.completions // len(_POLICIES))
    page = pathlib.Path(page_lib.write(name))
    megabytes = page.stat().st_size / 1e6
    page.write_text(page.read_text().replace('</body>', _MEASURE))
    shown = subprocess.run(
      [
        'chromium',
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        f'--user-data-dir={folder}/profile',
        '--dump-dom',
        f'file://{page}',
      ],
      capture_output=True,
      text=True,
      check=True,
    )
  seen = re.search(r'<output id="seen">(.*?)</output>', shown.stdout).group(1)
  print(json.dumps({'megabytes': round(megabytes, 1), **json.loads(seen)}))


if __name__ == '__main__':
  main()
