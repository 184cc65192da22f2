"""Shows the results of a comparison in a tracker."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from ipo_md.core import trackers

_FILES = ('results.json', 'completions.jsonl', 'index.html')


def show(
  tracker: trackers.Tracker | None,
  model_dir: epath.Path,
  found: Mapping[str, Any],
) -> None:
  """Shows win rates as scalars and as a table, and the files of the report.

  Args:
    tracker: TRACKER, or None.
    model_dir: MODEL_DIR.
    found: Contents of results.json.
  """
  table = win_rates(found)
  with trackers.InBackground(tracker) as background:
    background.scalars(
      0,
      {
        f'win_rate/{judge}/{policy}_over_{other}': rate
        for judge, policy, other, rate, *_ in table.rows
      },
    )
    background.report(
      {'win_rates': table}, [model_dir / name for name in _FILES]
    )


def win_rates(found: Mapping[str, Any]) -> trackers.Table:
  """Returns the win rate of each pair that was judged, with its 95 % interval.

  The policy that stands later in POLICIES is over the earlier one, so all are
  over the baseline.

  Args:
    found: Contents of results.json.
  """
  policies = found['policies']
  rows = []
  for judge, rates in found['win_rate'].items():
    for k, other in enumerate(policies):
      for i in range(k + 1, len(policies)):
        if rates[i][k] is not None:
          low, high = found['interval'][judge][i][k]
          values = [round(float(x), 6) for x in (rates[i][k], low, high)]
          rows.append((judge, policies[i], other, *values))
  return trackers.Table(
    ('judge', 'policy', 'over', 'win rate', 'low', 'high'), rows
  )
