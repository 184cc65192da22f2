"""Compares policies on the same held-out prompts.

  MODEL_DIR/results.json       win rates with intervals, measures of each policy
  MODEL_DIR/completions.jsonl  completions and judgements, a line per prompt
  MODEL_DIR/index.html         the report on both (`report`)
  MODEL_DIR/samples/           all completions that were drawn
  MODEL_DIR/judgements/        all judgements of a pair, in both orders

An interrupted run reuses its samples and judgements. Two runs of the same
configuration write the same bytes.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
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
from ipo_md.core import identity
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import part_store
from ipo_md.core import paths as paths_lib
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.core import trackers
from ipo_md.evaluation import drawing
from ipo_md.evaluation import drawn_samples
from ipo_md.evaluation import judge_agreement
from ipo_md.evaluation import results
from ipo_md.evaluation import rows as rows_lib
from ipo_md.evaluation import text_policies
from ipo_md.evaluation import tracking


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOf:
  """A row that needs no training: the best of n samples of a policy.

  Attributes:
    n: Number of samples of each prompt.
    policy: Name in POLICIES.
    judge: Name in JUDGES of the judge that selects the best sample.
  """

  n: int
  policy: str
  judge: str

  @property
  def name(self) -> str:
    """The name of the row."""
    return f'best_of_{self.n}'

  @property
  def kl_bound(self) -> float:
    """The bound log n - (n - 1) / n on the KL from the policy, in nats.

    See https://arxiv.org/abs/2401.01879.
    """
    return math.log(self.n) - (self.n - 1) / self.n


@model_dir_lib.may_change(
  'model_dir', 'mesh_shape', 'tracker', 'accept_changed_inputs'
)
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
  tracker: trackers.Tracker | None = None,
  accept_changed_inputs: bool = False,
) -> None:
  """Samples and judges completions, and writes the results and the report.

  Each policy draws two completions of every prompt with keys of its own. The
  first one is compared. Both serve to measure how far the judges agree.

  Args:
    model_dir: MODEL_DIR, the folder of the results.
    seed: SEED of the samples.
    mesh_shape: MESH_SHAPE.
    model: Network of the policies that are checkpoints.
    policies: POLICIES, name -> path of a checkpoint, or paths of several seeds,
      which give rows 'name[0]', 'name[1]', .... A path may also be the
      MODEL_DIR of an `infer` run of any model on these prompts. The first
      policy is the baseline.
    reference_checkpoint_path: REFERENCE_CHECKPOINT_PATH, for KL.
    prompts: Held-out prompts.
    sampler: Sampler of the completions.
    judges: JUDGES, name -> judge.
    compared: COMPARED, 'all' pairs or those with the 'baseline'.
    measure: Measures of completions as texts, beside length and EOS; or None.
    task_metrics: `task_metrics.of_task` to add the metrics of the task, or
      None.
    best_of: Best-of-n row, or None.
    agreement: Pairs on which the judges are compared, or None.
    tracker: TRACKER, which shows the win rates and the report as well; or None.
    accept_changed_inputs: ACCEPT_CHANGED_INPUTS, whether results are accepted
      though a policy, a judge or another input has changed under its path.

  Raises:
    ValueError: The configuration contradicts itself.
  """
  groups = rows_lib.by_policy(policies)
  paths = {
    name: paths_lib.absolute(path, f'POLICIES[{name!r}]')
    for rows in groups.values()
    for name, path in rows.items()
  }
  _check(groups, judges, compared, best_of, agreement)
  trackers.check(tracker)
  texts = rows_lib.given_as_text(paths, judges)
  claim = {
    'inputs': identity.of_run()
    | rows_lib.policy_inputs(paths)
    | rows_lib.judge_inputs(judges)
    | checkpoints.identify_all(
      {'REFERENCE_CHECKPOINT_PATH': reference_checkpoint_path}
    ),
    'accept_changed_inputs': accept_changed_inputs,
  }
  model_dir = model_dir_lib.check(model_dir, gin.config_str(), **claim)
  if model_dir_lib.is_completed(model_dir, 0):
    progress.say(f'{model_dir} is complete.')
    return
  parts = part_store.Folder(model_dir)
  runs = rows_lib.model_dirs(paths, judges)
  judges = {n: _cached(n, judge, parts) for n, judge in judges.items()}
  dataset = prompts.load()
  progress.say(progress.counted(dataset.counts))
  with (
    jax.set_mesh(sharding.make_mesh(mesh_shape)),
    model_dir_lib.claimed(model_dir, gin.config_str(), **claim),
  ):
    draw = drawing.drawer(
      model, prompts, dataset, reference_checkpoint_path, seed, parts
    )
    read = {
      name: text_policies.read(
        name, paths[name], prompts.examples, dataset, sampler.max_new_tokens
      )
      for name in texts
    }
    drawn, rows, found = _draw(paths, read, draw, sampler, judges, best_of)
    samples = judges_lib.Samples.concatenate([d.samples for d in rows.values()])
    pairs = rows_lib.pairs(list(rows), groups, compared)
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
        one_vocabulary=not texts,
      )
      found |= results.found(
        comparison, {n: list(g) for n, g in groups.items()}
      )
      for line in judge_agreement.warning_lines(found):
        progress.say(f'WARNING: {line}')
      results.write(epath.Path(model_dir), found, comparison)
      report.write(model_dir, runs)
      tracking.show(tracker, epath.Path(model_dir), found)
    model_dir_lib.complete(model_dir, 0)


def _draw(
  paths: Mapping[str, str],
  texts: Mapping[str, drawn_samples.Drawn],
  draw: Callable[..., drawn_samples.Drawn],
  sampler: sampling.Sampler,
  judges: Mapping[str, judges_lib.HostJudge],
  best_of: BestOf | None,
) -> tuple[
  dict[str, drawn_samples.Drawn], dict[str, drawn_samples.Drawn], dict[str, Any]
]:
  """Draws the samples of each policy and the completions that are compared.

  Args:
    paths: Row -> path.
    texts: Completions of the rows that are given as text.
    draw: Function that `drawing.drawer` makes.
    sampler: Sampler of the completions.
    judges: Judges by name, for `best_of`.
    best_of: Row that is added after its policy, or None.

  Returns:
    Policy -> two completions of each prompt; row -> one completion of each
    prompt; and `kl` and `entropy` by row, for rows that are not texts.
  """
  drawn, rows, kl, entropy = {}, {}, {}, {}
  for name, path in paths.items():
    if name in texts:
      rows[name] = texts[name]
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


def _check(groups, judges, compared, best_of, agreement) -> None:
  """Raises ValueError if names are missing, unknown or used twice."""
  rows = [name for group in groups.values() for name in group]
  if not judges or not rows or not all(groups.values()):
    raise ValueError('POLICIES and JUDGES need at least one name each.')
  if best_of is not None:
    if best_of.policy not in rows or best_of.judge not in judges:
      raise ValueError(
        f'BestOf.policy {best_of.policy!r} must be one of POLICIES {rows}, and '
        f'BestOf.judge {best_of.judge!r} one of JUDGES {list(judges)}.'
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


def _cached(
  name: str, judge: judges_lib.HostJudge, parts: part_store.Folder
) -> judges_lib.CachedJudge:
  """Wraps a judge so that an interrupted run finds its judgements again."""
  recipe: dict[str, Any] = {
    'bindings': model_dir_lib.bindings(gin.config_str())
  }
  read = [
    checkpoints.identity(path, f'the checkpoint path of JUDGES[{name!r}]')
    for path in judges_lib.checkpoint_paths(judge)
  ]
  if read:
    recipe['checkpoint'] = read[0] if len(read) == 1 else read
  return judges_lib.CachedJudge(judge, name, parts, recipe)


def _scores(
  drawn: drawn_samples.Drawn, measures: Sequence[judges_lib.Measure | None]
) -> list[dict[str, Any]]:
  """Measures each completion of K = 1.

  Args:
    drawn: One completion of each of N prompts.
    measures: Measures of the texts. None entries are ignored.

  Returns:
    N measures by name, with `length` and `eos_rate`.
  """
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
