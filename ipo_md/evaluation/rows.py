"""The rows of a comparison: policies, their seeds and the judged pairs."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib

from ipo_md import checkpoints
from ipo_md import judges as judges_lib
from ipo_md.core import identity
from ipo_md.core import paths as paths_lib
from ipo_md.evaluation import results
from ipo_md.evaluation import text_policies

Groups = Mapping[str, Mapping[str, str]]  # Policy -> row -> path.


def by_policy(
  policies: Mapping[str, str | Sequence[str]],
) -> dict[str, dict[str, str]]:
  """Names the rows of each policy, one for each seed.

    by_policy({'ipo': ['x', 'y']})  # {'ipo': {'ipo[0]': 'x', 'ipo[1]': 'y'}}

  Args:
    policies: POLICIES, name -> path, or paths of several seeds.

  Returns:
    Policy -> row -> path.
  """
  return {
    name: {name: paths}
    if isinstance(paths, str)
    else {f'{name}[{seed}]': path for seed, path in enumerate(paths)}
    for name, paths in policies.items()
  }


def given_as_text(
  paths: Mapping[str, str], judges: Mapping[str, judges_lib.HostJudge]
) -> list[str]:
  """Finds the rows that are texts, which judges of tokens cannot read.

  Args:
    paths: Row -> path.
    judges: JUDGES, name -> judge.

  Returns:
    Names of rows.

  Raises:
    ValueError: There are such rows and also judges that read tokens.
  """
  texts = [name for name, path in paths.items() if text_policies.is_texts(path)]
  of_tokens = [
    name for name, judge in judges.items() if judges_lib.reads_tokens(judge)
  ]
  if texts and of_tokens:
    raise ValueError(
      f'JUDGES {of_tokens} read tokens, but POLICIES {texts} are texts of '
      'infer runs, which may have another vocabulary. Remove these judges or '
      'these policies.'
    )
  return texts


def pairs(
  names: Sequence[str], groups: Groups, compared: str
) -> list[tuple[int, int]]:
  """Lists the pairs of rows that are judged.

  Args:
    names: Names of the rows.
    groups: Result of `by_policy`. The first policy is the baseline.
    compared: COMPARED, 'all' pairs or those with the 'baseline'.

  Returns:
    Pairs (i, k), i < k.
  """
  baseline = next(iter(groups.values()))
  return [
    (i, k)
    for i, k in results.pairs(len(names))
    if compared == 'all' or names[i] in baseline or names[k] in baseline
  ]


def policy_inputs(paths: Mapping[str, str]) -> dict[str, identity.Identity]:
  """Identifies the checkpoints or the texts of rows.

  Args:
    paths: Row -> path.
  """
  found = {
    f'POLICIES[{name!r}]': text_policies.identify(path, name)
    if text_policies.is_texts(path)
    else checkpoints.identify(path, name)
    for name, path in paths.items()
  }
  return {name: value for name, value in found.items() if value is not None}


def judge_inputs(
  judges: Mapping[str, judges_lib.HostJudge],
) -> dict[str, identity.Identity]:
  """Identifies the checkpoints of the judges that have one.

  Args:
    judges: JUDGES, name -> judge.
  """
  return checkpoints.identify_all(
    {
      key: path
      for name, judge in judges.items()
      for key, path in _checkpoints(f'JUDGES[{name!r}]', judge).items()
    }
  )


def _checkpoints(name: str, judge: judges_lib.HostJudge) -> dict[str, str]:
  """Returns the paths of a judge's checkpoints, each with a name."""
  paths = judges_lib.checkpoint_paths(judge)
  return {f'{name}[{i}]' if i else name: p for i, p in enumerate(paths)}


def model_dirs(
  paths: Mapping[str, str], judges: Mapping[str, judges_lib.HostJudge]
) -> dict[str, str]:
  """Finds the MODEL_DIRs of the checkpoints of rows and judges.

  The report shows their curves and gin files.

  Args:
    paths: Row -> path.
    judges: JUDGES, name -> judge.

  Returns:
    Row or judge -> MODEL_DIR.
  """
  paths = dict(paths)
  for name, judge in judges.items():
    paths |= _checkpoints(name, judge)
  found = {}
  for name, path in paths.items():
    path = paths_lib.absolute(path.removesuffix(':best'), name)
    folder = pathlib.Path(path)
    if folder.name.isdigit():
      folder = folder.parent
    if folder.name == 'checkpoints':
      folder = folder.parent
    found[name] = str(folder)
  return found
