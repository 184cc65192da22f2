"""Policies side by side: the same held-out prompts, pairs of them judged.

  MODEL_DIR/results.json       win rates with intervals, measures of each policy
  MODEL_DIR/completions.jsonl  what was compared and judged, a line per prompt
  MODEL_DIR/index.html         both, to look at (`report`)
  MODEL_DIR/samples/           every completion that was drawn
  MODEL_DIR/judgements/        every judgement of a pair, in both orders

An interrupted run finds its samples and judgements again, and two runs of one
configuration write the same bytes.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any
from typing import Literal

from etils import epath
import gin
import jax
import numpy as np

from ipo_md import checkpoints
from ipo_md import judges as judges_lib
from ipo_md import models
from ipo_md import report
from ipo_md import sampling
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import part_store
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.evaluation import drawing
from ipo_md.evaluation import judge_agreement
from ipo_md.evaluation import results
from ipo_md.evaluation import text_policies


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOf:
  """A row without training: the best of n samples of a policy.

  Attributes:
    n: samples of each prompt.
    policy: a name of POLICIES.
    judge: a name of JUDGES, which chooses.
  """

  n: int
  policy: str
  judge: str

  @property
  def name(self) -> str:
    return f'best_of_{self.n}'

  @property
  def kl_bound(self) -> float:
    """log n - (n - 1) / n >= KL from the policy (arXiv 2401.01879), nats."""
    return math.log(self.n) - (self.n - 1) / self.n


@model_dir_lib.may_change('model_dir', 'mesh_shape')
def side_by_side(
  *,
  model_dir: str,
  seed: int,
  mesh_shape: Sequence[int],
  model: models.Model,
  policies: Mapping[str, str | Sequence[str]],
  reference_checkpoint_path: str,
  prompts: drawing.Prompts,
  sampler: sampling.Sampler,
  judges: Mapping[str, judges_lib.HostJudge],
  compared: Literal['all', 'baseline'] = 'all',
  measure: judges_lib.Measure | None = None,
  task_metrics: Callable[..., judges_lib.Measure | None] | None = None,
  best_of: BestOf | None = None,
  agreement: judge_agreement.Agreement | None = None,
) -> None:
  """Samples, judges, writes results and report.

  Each policy draws two completions of every prompt with keys of its own; the
  first one is compared, both tell how far the judges agree on its samples.

  Args:
    model_dir: MODEL_DIR, for the results.
    seed: SEED of the samples.
    mesh_shape: MESH_SHAPE.
    model: network of the policies that are checkpoints.
    policies: POLICIES, name -> checkpoint path, or paths of several seeds, rows
      'name[0]', 'name[1]', ...; or the MODEL_DIR of an `infer` run on these
      prompts, of any model. The first is the baseline.
    reference_checkpoint_path: REFERENCE_CHECKPOINT_PATH, of KL.
    prompts: the held-out prompts.
    sampler: how completions are drawn.
    judges: JUDGES, name -> judge.
    compared: COMPARED, 'all' pairs or those with the 'baseline'.
    measure: of completions, as texts; None for length and EOS alone.
    task_metrics: `task_metrics.of_task`; None: not those of the task.
    best_of: None for no such row.
    agreement: None for no such table.

  Raises:
    ValueError: the configuration does not fit together.
  """
  groups = _groups(policies)
  paths = {n: path for rows in groups.values() for n, path in rows.items()}
  _check(groups, judges, compared, best_of, agreement)
  foreign = _foreign(paths, judges)
  model_dir = model_dir_lib.claim(model_dir, gin.config_str())
  if model_dir_lib.is_completed(model_dir, 0):
    progress.say(f'{model_dir} is complete.')
    return
  parts = part_store.Folder(model_dir)
  runs = _runs(paths, judges)
  judges = {n: _kept(n, judge, parts) for n, judge in judges.items()}
  dataset = prompts.load()
  with jax.set_mesh(sharding.make_mesh(mesh_shape)):
    draw = drawing.drawer(
      model, prompts, dataset, reference_checkpoint_path, seed, parts
    )
    read = {
      name: text_policies.read(
        name, paths[name], prompts.examples, dataset, sampler.max_new_tokens
      )
      for name in foreign
    }
    drawn, rows, found = _draw(paths, read, draw, sampler, judges, best_of)
    samples = judges_lib.Samples.concatenate([d.samples for d in rows.values()])
    pairs = _pairs(list(rows), groups, compared)
    judged = {
      name: judges_lib.in_both_orders(judge, samples, pairs)
      for name, judge in judges.items()
    }
    if agreement is not None:
      found |= judge_agreement.tables(agreement, drawn, judges, measure)
  if jax.process_index() == 0:
    of_task = task_metrics and task_metrics(dataset, prompts.examples)
    comparison = results.Comparison(
      prompts=samples.prompts,
      texts={n: [row[0] for row in d.samples.texts] for n, d in rows.items()},
      scores={n: _scores(d, [measure, of_task]) for n, d in rows.items()},
      pairs=pairs,
      judged=judged,
      one_vocabulary=not foreign,
    )
    found |= results.found(comparison, {n: list(g) for n, g in groups.items()})
    results.write(epath.Path(model_dir), found, comparison)
    report.write(model_dir, runs)
  model_dir_lib.complete(model_dir, 0)


def _draw(
  paths: Mapping[str, str],
  foreign: Mapping[str, drawing.Drawn],
  draw: Callable[..., drawing.Drawn],
  sampler: sampling.Sampler,
  judges: Mapping[str, judges_lib.HostJudge],
  best_of: BestOf | None,
) -> tuple[dict[str, drawing.Drawn], dict[str, drawing.Drawn], dict[str, Any]]:
  """Samples of each policy, and the rows of the comparison: one completion.

  Args:
    paths: of the policies, by name.
    foreign: those that are texts.
    draw: `drawing.drawer`.
    sampler: how completions are drawn.
    judges: by name, for best_of.
    best_of: a row after its policy; or None.

  Returns:
    Policy -> two completions of each prompt; row -> one; and their measures
    that texts do not have, `kl` and `entropy` by row.
  """
  drawn, rows, kl, entropy = {}, {}, {}, {}
  for name, path in paths.items():
    if name in foreign:
      rows[name] = foreign[name]
      continue
    drawn[name] = plain = draw(name, path, sampler, k=2)
    rows[name] = plain.take(np.zeros(len(plain.ended), int))
    if sampler != sampler.plain:
      plain = draw(name, path, sampler.plain, k=2)
    kl[name] = plain.log_ratio.mean()
    entropy[name] = -plain.log_prob.mean()
    if best_of is not None and best_of.policy == name:
      many = draw(best_of.name, path, sampler, k=best_of.n)
      chosen = judges_lib.best_of(judges[best_of.judge], many.samples)
      rows[best_of.name] = many.take(chosen)
      kl[best_of.name] = best_of.kl_bound
  return drawn, rows, {'kl': kl, 'entropy': entropy}


def _groups(
  policies: Mapping[str, str | Sequence[str]],
) -> dict[str, dict[str, str]]:
  """Rows of each policy, one for each seed: name -> row's name -> path."""
  return {
    name: {name: paths}
    if isinstance(paths, str)
    else {f'{name}[{seed}]': path for seed, path in enumerate(paths)}
    for name, paths in policies.items()
  }


def _check(groups, judges, compared, best_of, agreement) -> None:
  rows = [name for group in groups.values() for name in group]
  if not judges or not rows or not all(groups.values()):
    raise ValueError('POLICIES and JUDGES need at least one name each.')
  if best_of is not None:
    if best_of.policy not in rows or best_of.judge not in judges:
      raise ValueError(
        f'BestOf: policy {best_of.policy!r} is to be one of POLICIES {rows}, '
        f'judge {best_of.judge!r} one of JUDGES {list(judges)}.'
      )
    rows.append(best_of.name)
  for name in rows:
    if rows.count(name) > 1:
      raise ValueError(
        f'POLICIES, with their seeds and BestOf, name {name} twice: {rows}.'
      )
  if compared not in ('all', 'baseline'):
    raise ValueError(f"COMPARED = {compared!r} is not 'all' or 'baseline'.")
  if agreement is not None and agreement.truth not in judges:
    raise ValueError(
      f'Agreement.truth {agreement.truth!r} is not one of JUDGES '
      f'{list(judges)}.'
    )


def _foreign(
  paths: Mapping[str, str], judges: Mapping[str, judges_lib.HostJudge]
) -> list[str]:
  """The policies that are texts, which judges of tokens cannot read."""
  foreign = [
    name for name, path in paths.items() if text_policies.is_texts(path)
  ]
  of_tokens = [
    name
    for name, judge in judges.items()
    if isinstance(judge, judges_lib.LearnedJudge)
  ]
  if foreign and of_tokens:
    raise ValueError(
      f'JUDGES {of_tokens} read tokens, and POLICIES {foreign} are texts of '
      'infer runs, whose vocabulary may be another one: leave out the ones or '
      'the others.'
    )
  return foreign


def _pairs(
  rows: Sequence[str], groups: Mapping[str, Mapping[str, str]], compared: str
) -> list[tuple[int, int]]:
  """The pairs of rows that are judged."""
  baseline = next(iter(groups.values()))
  return [
    (i, k)
    for i, k in results.pairs(len(rows))
    if compared == 'all' or rows[i] in baseline or rows[k] in baseline
  ]


def _kept(
  name: str, judge: judges_lib.HostJudge, parts: part_store.Folder
) -> judges_lib.CachedJudge:
  """The judge, with judgements that an interrupted run finds again."""
  recipe = {'bindings': model_dir_lib.bindings(gin.config_str())}
  if isinstance(judge, judges_lib.LearnedJudge):
    recipe['checkpoint'] = checkpoints.identity(
      judge.checkpoint_path, f'the checkpoint path of JUDGES[{name!r}]'
    )
  return judges_lib.CachedJudge(judge, name, parts, recipe)


def _scores(
  drawn: drawing.Drawn, measures: Sequence[judges_lib.Measure | None]
) -> list[dict[str, Any]]:
  """Measures of each completion of K = 1."""
  completions = [row[0] for row in drawn.samples.texts]
  measured = [m(drawn.samples.prompts, completions) for m in measures if m]
  return [
    {
      **{k: v for rows in measured for k, v in rows[n].items()},
      'length': int(drawn.length[n, 0]),
      'eos_rate': int(drawn.ended[n, 0]),
    }
    for n in range(len(completions))
  ]


def _runs(
  paths: Mapping[str, str], judges: Mapping[str, judges_lib.HostJudge]
) -> dict[str, str]:
  """The MODEL_DIRs behind the checkpoints, for curves and gin."""
  paths = dict(paths)
  for name, judge in judges.items():
    if isinstance(judge, judges_lib.LearnedJudge):
      paths[name] = judge.checkpoint_path
  found = {}
  for name, path in paths.items():
    folder = pathlib.Path(path.removesuffix(':best'))
    if folder.name.isdigit():
      folder = folder.parent
    if folder.name == 'checkpoints':
      folder = folder.parent
    found[name] = str(folder)
  return found
