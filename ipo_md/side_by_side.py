"""Policies side by side: the same held-out prompts, every pair judged.

  MODEL_DIR/results.json       win rates with intervals, measures of each policy
  MODEL_DIR/completions.jsonl  every completion and judgement, a line per prompt
  MODEL_DIR/index.html         both, to look at (`report`)

Two runs of one configuration write the same bytes.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

from etils import epath
import gin
import jax
import numpy as np

from ipo_md import agreement as agreement_lib
from ipo_md import checkpoints
from ipo_md import held_out
from ipo_md import pairwise
from ipo_md import report
from ipo_md import results
from ipo_md import sharding
from ipo_md import telemetry
from ipo_md.models import model as model_lib


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


def side_by_side(
  *,
  model_dir: str,
  seed: int,
  mesh_shape: Sequence[int],
  model: model_lib.Model,
  policies: Mapping[str, str],
  reference_checkpoint_path: str,
  prompts: held_out.Prompts,
  sampler: held_out.Sampler,
  judges: Mapping[str, pairwise.Judge],
  measure: pairwise.Measure | None = None,
  best_of: BestOf | None = None,
  agreement: agreement_lib.Agreement | None = None,
) -> None:
  """Samples, judges, writes results and report.

  Each policy draws two completions of every prompt with keys of its own; the
  first one is compared, both tell how far the judges agree on its samples.

  Args:
    model_dir: MODEL_DIR, for the results.
    seed: SEED of the samples.
    mesh_shape: MESH_SHAPE.
    model: network of all policies.
    policies: POLICIES, name -> checkpoint path. The first is the baseline of
      paired differences.
    reference_checkpoint_path: REFERENCE_CHECKPOINT_PATH, of KL.
    prompts: the held-out prompts.
    sampler: how completions are drawn.
    judges: JUDGES, name -> judge.
    measure: of completions, as texts; None for length and EOS alone.
    best_of: None for no such row.
    agreement: None for no such table.

  Raises:
    ValueError: the configuration does not fit together.
  """
  _check(policies, judges, best_of, agreement)
  checkpoints.claim(model_dir, gin.config_str())
  if checkpoints.is_completed(model_dir, 0):
    telemetry.say(f'{model_dir} is complete.')
    return
  mesh = sharding.make_mesh(mesh_shape)
  with jax.set_mesh(mesh):
    draw = held_out.drawer(
      model, prompts, reference_checkpoint_path, mesh, seed
    )
    drawn, compared, kl, entropy = {}, {}, {}, {}
    for name, path in policies.items():
      drawn[name] = plain = draw(name, path, sampler, k=2)
      compared[name] = drawn[name].take(np.zeros(prompts.examples, int))
      if sampler != sampler.plain:
        plain = draw(name, path, sampler.plain, k=2)
      kl[name] = plain.log_ratio.mean()
      entropy[name] = -plain.log_prob.mean()
      if best_of is not None and best_of.policy == name:
        many = draw(best_of.name, path, sampler, k=best_of.n)
        chosen = pairwise.best_of(judges[best_of.judge], many.samples)
        compared[best_of.name] = many.take(chosen)
        kl[best_of.name] = best_of.kl_bound
    scores = {name: _scores(d, measure) for name, d in compared.items()}
    samples = pairwise.Samples.beside([d.samples for d in compared.values()])
    judged = {
      name: pairwise.preference(judge, samples, results.pairs(len(compared)))
      for name, judge in judges.items()
    }
    found = _found(compared, scores, judged)
    found.update(kl=kl, entropy=entropy)
    if agreement is not None:
      found |= agreement_lib.tables(agreement, drawn, judges, measure)
  if jax.process_index() == 0:
    folder = pathlib.Path(epath.Path(model_dir))
    texts = {
      n: [row[0] for row in d.samples.texts] for n, d in compared.items()
    }
    results.write(folder, found, samples.prompts, texts, scores, judged)
    report.write(str(folder), _runs(policies, judges))
  checkpoints.complete(model_dir, 0)


def _check(policies, judges, best_of, agreement) -> None:
  if not policies or not judges:
    raise ValueError('POLICIES and JUDGES need at least one name each.')
  if best_of is not None:
    if best_of.policy not in policies or best_of.judge not in judges:
      raise ValueError(
        f'BestOf: policy {best_of.policy!r} is to be one of POLICIES '
        f'{list(policies)}, judge {best_of.judge!r} one of JUDGES '
        f'{list(judges)}.'
      )
    if best_of.name in policies:
      raise ValueError(
        f'POLICIES has a name that BestOf gives: {best_of.name}.'
      )
  if agreement is not None and agreement.truth not in judges:
    raise ValueError(
      f'Agreement.truth {agreement.truth!r} is not one of JUDGES '
      f'{list(judges)}.'
    )


def _scores(
  drawn: held_out.Drawn, measure: pairwise.Measure | None
) -> list[dict[str, Any]]:
  """Measures of each completion of K = 1."""
  texts = [row[0] for row in drawn.samples.texts]
  measured = [{}] * len(texts)
  if measure is not None:
    measured = measure(drawn.samples.prompts, texts)
  mask = drawn.samples.tokens.completions.mask
  length = mask.sum(axis=-1) - drawn.ended
  return [
    {
      **row,
      'length': int(length[n, 0]),
      'eos_rate': int(drawn.ended[n, 0]),
    }
    for n, row in enumerate(measured)
  ]


def _found(compared, scores, judged) -> dict[str, Any]:
  """What results.json says of completions and judgements."""
  policies = list(compared)
  lengths = {
    name: np.array([row['length'] for row in rows])
    for name, rows in scores.items()
  }
  return {
    'policies': policies,
    'judges': list(judged),
    'prompts': len(lengths[policies[0]]),
    **results.matrices(policies, judged, lengths),
    **results.measures(policies, scores),
  }


def _runs(
  policies: Mapping[str, str], judges: Mapping[str, pairwise.Judge]
) -> dict[str, str]:
  """The MODEL_DIRs behind the checkpoints, for curves and gin."""
  paths = dict(policies)
  for name, judge in judges.items():
    if isinstance(judge, pairwise.LearnedJudge):
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
