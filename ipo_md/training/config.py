"""The configuration of a training run, bound by gin."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from ipo_md import checkpoints
from ipo_md import data
from ipo_md import models
from ipo_md.core import model_dir


@model_dir.may_change(
  'train_steps', 'log_period', 'eval_period', 'checkpoint_period'
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """When a run logs, evaluates, saves and ends, in updates; 0 means never.

  Attributes:
    train_steps: TRAIN_STEPS, number of updates.
    log_period: LOG_PERIOD, updates between two lines of progress and metrics.
    eval_period: EVAL_PERIOD, updates between two evaluations.
    checkpoint_period: CHECKPOINT_PERIOD, updates between two checkpoints. The
      last state is always saved.
    keep: Which checkpoints are kept.
  """

  train_steps: int
  log_period: int
  eval_period: int
  checkpoint_period: int
  keep: checkpoints.Keep = checkpoints.Keep()

  def logs_at(self, step: int) -> bool:
    return _due(step, self.log_period)

  def evaluates_at(self, step: int) -> bool:
    return _due(step, self.eval_period)

  def saves_at(self, step: int) -> bool:
    return _due(step, self.checkpoint_period)


def _due(step: int, period: int) -> bool:
  return bool(period) and step % period == 0


@model_dir.may_change('hang_seconds', 'profile_start', 'profile_steps')
@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
  """Safeguards and profiles of a run.

  Attributes:
    max_skipped: MAX_SKIPPED, how many updates in a row may be skipped because
      of their gradient. At 0 none is, and the run stops.
    skip_gradient_norm: SKIP_GRADIENT_NORM, the largest norm of a gradient that
      is not skipped. None allows every finite gradient.
    hang_seconds: HANG_SECONDS, time without an update or a batch of an
      evaluation after which a process reports where it hangs, and exits. 0
      waits for ever.
    profile_start: PROFILE_START, first update of a profile. None profiles only
      when MODEL_DIR/PROFILE is touched.
    profile_steps: PROFILE_STEPS, updates in a profile.
  """

  max_skipped: int = 0
  skip_gradient_norm: float | None = None
  hang_seconds: float = 0
  profile_start: int | None = None
  profile_steps: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """Where parameters come from.

  Attributes:
    initial_checkpoint_path: INITIAL_CHECKPOINT_PATH, the network that is
      trained. None starts from random parameters.
    model_config_path: MODEL_CONFIG_PATH, the checkpoint whose tokenizer and
      config.json are written to MODEL_DIR/model. None, or one that has none,
      writes what the network itself determines.
    fresh: Modules that start from random parameters all the same, such as a
      reward head.
    reference_checkpoint_path: REFERENCE_CHECKPOINT_PATH. None loads no
      reference.
    judge_checkpoint_path: JUDGE_CHECKPOINT_PATH. None if the judge has no
      parameters.
    judge_model: Network of the judge.
    players: The `algorithms.Players` of the step, some of which the state
      holds; None if there are none.
    reference_rules: REFERENCE_SHARDING, logical axis -> mesh axis, if the
      reference is to be laid out otherwise than `sharding.RULES` say.
      {'embed': 'fsdp'} splits it over fsdp alone, {} replicates it.
    judge_rules: JUDGE_SHARDING, the same for the judge.
  """

  initial_checkpoint_path: str | None = None
  model_config_path: str | None = None
  fresh: Sequence[str] = ()
  reference_checkpoint_path: str | None = None
  judge_checkpoint_path: str | None = None
  judge_model: models.Model | None = None
  players: Any = None
  reference_rules: Mapping[str, str] | None = None
  judge_rules: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What is measured on held-out examples.

  Attributes:
    metrics: Function of `algorithms` that measures a batch, with the model left
      open.
    dataset: Function that loads the evaluation split.
    batch_size: EVAL_BATCH_SIZE, examples measured at a time.
    examples: EVAL_EXAMPLES, how many examples of the split are measured, a
      multiple of the batch size.
  """

  metrics: Callable[..., Any]
  dataset: Callable[[], data.Dataset]
  batch_size: int
  examples: int

  def __post_init__(self):
    if self.examples % self.batch_size:
      raise ValueError(
        f'EVAL_EXAMPLES {self.examples} is not a multiple of '
        f'EVAL_BATCH_SIZE {self.batch_size}.'
      )
