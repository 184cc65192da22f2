"""The configuration of a training run, bound by gin."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from ipo_md import checkpoints
from ipo_md import data
from ipo_md import models


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """When things happen, in updates; 0: never.

  Attributes:
    train_steps: TRAIN_STEPS, updates in all.
    log_period: LOG_PERIOD, between two lines of progress and metrics.
    eval_period: EVAL_PERIOD, between two evaluations.
    checkpoint_period: CHECKPOINT_PERIOD, between two checkpoints; the last
      state is always saved.
    keep: which checkpoints stay.
  """

  train_steps: int
  log_period: int
  eval_period: int
  checkpoint_period: int
  keep: checkpoints.Keep = checkpoints.Keep()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
  """What is looked out for while a run goes on.

  Attributes:
    max_skipped: MAX_SKIPPED, how many updates in a row may be left out for
      their gradient; 0: none, the run stops.
    skip_gradient_norm: SKIP_GRADIENT_NORM, the largest norm of a gradient that
      is not left out; None: all are that are finite.
    hang_seconds: HANG_SECONDS without an update or a batch of an evaluation,
      after which a process says where it hangs, and ends; 0: never.
    profile_start: PROFILE_START, the first update of a profile; None: none but
      those that touching MODEL_DIR/PROFILE asks for.
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
    initial_checkpoint_path: INITIAL_CHECKPOINT_PATH, of the network that is
      trained; None: from random ones.
    fresh: modules that start from random parameters all the same, such as a
      reward head.
    reference_checkpoint_path: REFERENCE_CHECKPOINT_PATH; None: no reference.
    judge_checkpoint_path: JUDGE_CHECKPOINT_PATH; None: the judge has none.
    judge_model: its network.
    ema: whether the state holds a moving average of the parameters.
    reference_rules: REFERENCE_SHARDING, logical axis -> mesh axis, if the
      reference is to lie otherwise than `sharding.RULES` say: {'embed': 'fsdp'}
      splits it over fsdp alone, {} puts all of it on every chip.
    judge_rules: JUDGE_SHARDING, likewise.
  """

  initial_checkpoint_path: str | None = None
  fresh: Sequence[str] = ()
  reference_checkpoint_path: str | None = None
  judge_checkpoint_path: str | None = None
  judge_model: models.Model | None = None
  ema: bool = False
  reference_rules: Mapping[str, str] | None = None
  judge_rules: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What is measured on held-out examples.

  Attributes:
    metrics: of `steps`, means over a batch, with the model still open.
    dataset: of the evaluation split.
    batch_size: of the evaluation.
    examples: how many of the split, a multiple of batch_size.
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
