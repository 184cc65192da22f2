"""Says which networks a run has, how large they are, and where sizes are set.

policy        783.2 million parameters (gin/models/t5_1_1_large.gin)
"""

from collections.abc import Iterator
from collections.abc import Sequence
import pathlib
import re

from ipo_md import models
from ipo_md import training
from ipo_md.core import gin_config
from ipo_md.tpu import flops as flops_lib

# A binding of a size: in the scope of the judge, or for all networks.
_SIZE = re.compile(
  r'^(judge/)?(?:models|model_folder)\.\w+'
  r'\.(?:\w+_dim|num_\w+|vocab_size|path) *='
)
_INCLUDE = re.compile(r"""^include ['"](.*)['"]""")


def describe(
  model: models.Model, start: training.Start, *, trains_judge: bool
) -> str:
  """Returns a line for each network of a run.

  A judge has the sizes of the policy unless something binds others in the scope
  judge, so that is said.

  Args:
    model: Network that is trained.
    start: What the other networks are.
    trains_judge: Whether the network that is trained is a judge.
  """
  sources = {'': 'the command line'}
  files, bindings = gin_config.given()
  for place, line in _lines(files):
    if found := _SIZE.match(line):
      sources[found[1] or ''] = place
  for binding in bindings:
    if found := _SIZE.match(binding):
      sources[found[1] or ''] = 'the command line'
  policy = sources['']
  judge = sources.get(
    'judge/', f'{policy}, as the policy: nothing gives the judge other sizes'
  )
  if trains_judge:
    return _line('judge', model.base, judge)
  lines = [_line('policy', model.base, policy)]
  if start.reference_checkpoint_path is not None:
    lines.append(_line('reference', model.base, f'{policy}, as the policy'))
  if start.judge_checkpoint_path is not None and start.judge_model is not None:
    lines.append(_line('judge', start.judge_model, judge))
  return '\n'.join(lines)


def _line(name: str, model: models.Model, source: str) -> str:
  millions = flops_lib.count(model.abstract_params) / 1e6
  return f'  {name:9} {millions:9,.1f} million parameters ({source})'


def _lines(files: Sequence[str]) -> Iterator[tuple[str, str]]:
  """Yields the lines of gin files and of what they include, in gin's order."""
  for file in files:
    for line in pathlib.Path(gin_config.find(file)).read_text().splitlines():
      if included := _INCLUDE.match(line):
        yield from _lines([included[1]])
      else:
        yield file, line
