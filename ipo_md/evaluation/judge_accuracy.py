"""Measures judges on labelled pairs: accuracy, calibration, order and length.

  MODEL_DIR/results.json   agreement, calibration, by_length, order_consistency,
                           judge_warnings, each pairs -> judge -> ..., as
                           `judge_agreement` says

`side_by_side` reports the same numbers on a policy's own samples.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
from typing import Any

from etils import epath
import gin
import jax

from ipo_md import data
from ipo_md import judges as judges_lib
from ipo_md.core import identity
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import sharding
from ipo_md.evaluation import judge_agreement
from ipo_md.evaluation import results
from ipo_md.evaluation import rows as rows_lib


@model_dir_lib.may_change('model_dir', 'mesh_shape', 'accept_changed_inputs')
def judge_accuracy(
  *,
  model_dir: str,
  mesh_shape: Sequence[int],
  judges: Mapping[str, judges_lib.HostJudge],
  dataset: Callable[[], data.Dataset],
  examples: int,
  accept_changed_inputs: bool = False,
) -> None:
  """Measures judges on labelled pairs; prints the numbers and writes them.

  Args:
    model_dir: MODEL_DIR, the folder of results.json.
    mesh_shape: MESH_SHAPE.
    judges: JUDGES, name -> judge.
    dataset: Function that loads pairs with their preference.
    examples: EVAL_EXAMPLES, the number of pairs, counted from the first.
    accept_changed_inputs: ACCEPT_CHANGED_INPUTS, whether results of other
      judges or pairs under the same paths are accepted.

  Raises:
    ValueError: There are no judges or no pairs, or pairs have no preference.
  """
  claim = {
    'inputs': identity.of_run() | rows_lib.judge_inputs(judges),
    'accept_changed_inputs': accept_changed_inputs,
  }
  model_dir = model_dir_lib.check(model_dir, gin.config_str(), **claim)
  if model_dir_lib.is_completed(model_dir, 0):
    print(f'{model_dir} is complete.', flush=True)
    return
  if examples < 1 or not judges:
    raise ValueError(
      f'EVAL_EXAMPLES is {examples} and JUDGES has {len(judges)} names, but '
      'both must be at least 1.'
    )
  with (
    jax.set_mesh(sharding.make_mesh(mesh_shape)),
    model_dir_lib.claimed(model_dir, gin.config_str(), **claim),
  ):
    samples, truth = judge_agreement.labelled_pairs(dataset(), examples)
    found = judge_agreement.on_pairs(judges, samples, truth)
    if jax.process_index() == 0:
      print(describe(found), flush=True)
      tables = judge_agreement.by_kind({'held_out_pairs': found})
      content = {'judges': list(judges), 'pairs': len(truth), **tables}
      text = json.dumps(results.rounded(content), indent=1, sort_keys=True)
      (epath.Path(model_dir) / 'results.json').write_text(text + '\n')
    model_dir_lib.complete(model_dir, 0)


def describe(found: Mapping[str, Mapping[str, Any]]) -> str:
  """Formats the result of `judge_measures.compared` as lines of text."""
  lines = []
  for judge, (share, low, high, count) in found['agreement'].items():
    calibration = found['calibration'][judge]
    consistent = found['order_consistency'][judge][0]
    warning = found.get('judge_warnings', {}).get(judge)
    lines += [
      f'{judge}, {count:,} pairs',
      f'  agrees with the labels      {share:.3f} ({low:.3f} to {high:.3f})',
      f'  same winner in both orders  {consistent:.3f}',
      *([f'  WARNING: {judge} {warning}'] if warning else []),
      f'  calibration error           {calibration["ece"]:.3f}',
      '  confidence   accuracy   pairs',
    ]
    lines += [
      f'  {b["confidence"]:10.3f} {b["accuracy"]:10.3f} {b["count"]:7,}'
      for b in calibration['bins']
    ]
    lines.append('  the better is longer by   accuracy   pairs')
    lines += [
      f'  {b["low"]:10} to {b["high"]:4} tokens {b["accuracy"]:10.3f} '
      f'{b["count"]:7,}'
      for b in found['by_length'][judge]
    ]
  return '\n'.join(lines)
