"""The training loop, read top to bottom; no maths."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import importlib.metadata
import json
import math
from typing import Any

from etils import epath
import gin
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax
import seqio

from ipo_md import accumulation
from ipo_md import batches
from ipo_md import checkpoints
from ipo_md import data
from ipo_md import optimizers
from ipo_md import performance
from ipo_md import sharding
from ipo_md import telemetry
from ipo_md import types
from ipo_md.models import model as model_lib

_SAMPLES = 4  # shown as text at an evaluation


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
  judge_model: model_lib.Model | None = None
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


def one_program(
  step: Callable[..., Any],
  *,
  model: model_lib.Model,
  dataset: data.Dataset,
  state_sharding: Any,
) -> Callable[..., Any]:
  """Compiles a step as it is. `oaif.two_programs` goes over the host.

  Args:
    step: (state, frozen, batch, rng) -> (state, metrics).
    model: network that is trained.
    dataset: of the batches.
    state_sharding: of the state, which is donated.
  """
  del model, dataset
  return sharding.jit_update(step, state_sharding)


def train(
  *,
  model_dir: str,
  seed: int,
  mesh_shape: Sequence[int],
  batch_size: int,
  model: model_lib.Model,
  optimizer: Callable[[Any], optax.GradientTransformation],
  step: Callable[..., Any],
  dataset: Callable[[], data.Dataset],
  schedule: Schedule,
  start: Start,
  evaluation: Evaluation | None = None,
  watch: Watch = Watch(),
  program: Callable[..., Any] = one_program,
  microbatches: int = 1,
  part_weight: Callable[[Any], jax.Array] | None = None,
) -> None:
  """Runs updates until TRAIN_STEPS, from the last checkpoint if there is one.

  The key of an update is fold_in(run key, step), and its batch a function of
  (seed, step): a resumed run is the uninterrupted run, bit for bit.

  Args:
    model_dir: MODEL_DIR, for checkpoints and metrics.
    seed: SEED of initialisation, order of the data, dropout and samples.
    mesh_shape: MESH_SHAPE.
    batch_size: BATCH_SIZE, over all hosts.
    model: network that is trained.
    optimizer: logical axes -> the optimizer of its parameters.
    step: of `steps`, with model and optimizer still open.
    dataset: the training examples.
    schedule: when things happen.
    start: where parameters come from.
    evaluation: None for none.
    watch: what is looked out for.
    program: makes of the step what is called for each batch.
    microbatches: MICROBATCHES, parts of a batch whose gradients are summed up
      one after another: less memory, as much work.
    part_weight: see `accumulation.accumulate`.

  Raises:
    FloatingPointError: a metric is not finite, or more updates were skipped
      than may be; names it and the step. The checkpoints that are there stay
      as they are.
    ValueError: the configuration does not fit together.
  """
  # What does not go together is said before anything is made.
  mesh = sharding.make_mesh(mesh_shape)
  accumulation.check(batch_size, microbatches, mesh)
  sharding.params(mesh, model.abstract_params, model.logical_axes)
  abstract_frozen(mesh, model, start)
  checkpoints.claim(model_dir, gin.config_str())
  if checkpoints.is_completed(model_dir, schedule.train_steps):
    telemetry.say(f'{model_dir} is complete: {schedule.train_steps:,} steps.')
    return
  step = accumulation.accumulate(step, parts=microbatches, weight=part_weight)
  examples = dataset()
  optimizer = make_optimizer(optimizer, model, watch)
  data.check_vocabulary(examples, model.config.vocab_size)
  init_key, step_key, eval_key = jax.random.split(jax.random.key(seed), 3)
  with (
    jax.set_mesh(mesh),
    performance.Meter() as meter,
    checkpoints.manager(model_dir, keep=schedule.keep) as saved,
    telemetry.MetricWriter(model_dir) as writer,
    performance.Watchdog(watch.hang_seconds) as watchdog,
    performance.Profiler(
      model_dir, first=watch.profile_start, count=watch.profile_steps
    ) as profiler,
  ):
    with meter.phase('start'):
      training = batches.Batches(
        examples,
        batch_size=batch_size,
        seed=seed,
        sharding=sharding.batch(mesh),
      )
      evaluate = _evaluator(evaluation, model, mesh, eval_key, watchdog)
      frozen = load_frozen(mesh, model, start, examples.vocabulary)
      state, shardings = _initial_state(
        mesh, model, optimizer, start, examples.vocabulary, saved, init_key
      )
      _describe(model_dir, state, frozen, mesh, examples)
    update = program(
      functools.partial(step, model=model, optimizer=optimizer),
      model=model,
      dataset=examples,
      state_sharding=shardings,
    )
    adapts = checkpoints.adapted(model, start.reference_checkpoint_path)
    checkpoints.reopen(model_dir)
    first = int(state.step)
    if first == 0:
      writer.scalars(0, {f'data_{k}': v for k, v in examples.counts.items()})
      with meter.phase('evaluation'):
        _write(writer, 0, *evaluate(state, frozen))
    line = telemetry.ProgressLine(schedule.train_steps, first)
    size = sum(x.size for x in jax.tree.leaves(state.params))
    window = []
    steps = range(first, schedule.train_steps)
    for done, batch in meter.waiting(
      'data', enumerate(batches.prefetch(training, steps), first + 1)
    ):
      with meter.phase('update'):
        profiler.before(done)
        state, metrics = update(
          state, frozen, batch, jax.random.fold_in(step_key, done - 1)
        )
        profiler.after(done, metrics)
      watchdog.alive(f'step {done:,}')
      window.append(metrics)
      last, measured = done == schedule.train_steps, {}
      preempted = multihost_utils.reached_preemption_sync_point(done)
      saving = last or preempted or _due(done, schedule.checkpoint_period)
      showing = saving or _due(done, schedule.log_period)
      if showing:
        with meter.phase('update'):  # until here the host ran ahead
          means, tokens = _means(window, done, watch.max_skipped)
        writer.scalars(done, means)
      if _due(done, schedule.eval_period) or last:
        with meter.phase('evaluation'):
          measured, texts = evaluate(state, frozen)
        _write(writer, done, measured, texts)
      if saving:
        with meter.phase('checkpoint'):
          checkpoints.save(
            saved,
            state,
            examples.vocabulary,
            measured.get('win_rate'),
            adapts,
          )
      if showing:
        line.update(done, means | measured, tokens=tokens)
        found = meter.report(
          updates=len(window), tokens=tokens, parameters=size
        )
        writer.performance(done, found)
        window.clear()
        profiler.look(done)
        for program in meter.recompiled():
          telemetry.say(
            f'Compiled again up to step {done:,}, as shapes vary: {program}'
          )
      if preempted and not last:
        checkpoints.wait(saved)
        telemetry.say(
          f'Stopped by SIGTERM: step {done:,} is saved in {model_dir}.'
        )
        return
    line.close()
    checkpoints.wait(saved)
  if jax.process_index() == 0:
    path = epath.Path(model_dir) / 'operative_config.gin'
    path.write_text(gin.operative_config_str())
  checkpoints.complete(model_dir, schedule.train_steps)


def make_optimizer(
  optimizer: Callable[[Any], optax.GradientTransformation],
  model: model_lib.Model,
  watch: Watch,
) -> optax.GradientTransformation:
  """The optimizer of a model's parameters, with what skips updates."""
  optimizer = optimizer(model.logical_axes)
  if watch.max_skipped or watch.skip_gradient_norm is not None:
    optimizer = optimizers.skipping(
      optimizer, max_gradient_norm=watch.skip_gradient_norm
    )
  return optimizer


def load_frozen(
  mesh: jax.sharding.Mesh,
  model: model_lib.Model,
  start: Start,
  vocabulary: seqio.Vocabulary,
) -> types.FrozenParams:
  """Reference and judge, from their own paths into their own buffers."""
  reference = judge = None
  if start.reference_checkpoint_path is not None:
    reference = checkpoints.load_params(
      start.reference_checkpoint_path,
      model.base,
      mesh,
      name='REFERENCE_CHECKPOINT_PATH',
      vocabulary=vocabulary,
      rules=start.reference_rules,
    )
  if start.judge_checkpoint_path is not None:
    judge = checkpoints.load_params(
      start.judge_checkpoint_path,
      start.judge_model,
      mesh,
      name='JUDGE_CHECKPOINT_PATH',
      vocabulary=vocabulary,
      rules=start.judge_rules,
    )
  return types.FrozenParams(reference=reference, judge=judge)


def abstract_state(
  mesh: jax.sharding.Mesh,
  model: model_lib.Model,
  optimizer: optax.GradientTransformation,
  start: Start,
) -> types.TrainState:
  """The state of a run as `jax.ShapeDtypeStruct`s with their shardings."""
  make = functools.partial(_make_state, optimizer=optimizer, start=start)
  abstract = jax.eval_shape(make, model.abstract_params)
  shardings = sharding.like_params(
    mesh,
    abstract,
    sharding.params(mesh, model.abstract_params, model.logical_axes),
  )
  return sharding.with_shardings(abstract, shardings)


def abstract_frozen(
  mesh: jax.sharding.Mesh, model: model_lib.Model, start: Start
) -> types.FrozenParams:
  """Reference and judge of a run, likewise."""
  reference = judge = None
  if start.reference_checkpoint_path is not None:
    reference = sharding.abstract_params(
      mesh,
      model.base.abstract_params,
      model.base.logical_axes,
      start.reference_rules,
    )
  if start.judge_checkpoint_path is not None:
    judge = sharding.abstract_params(
      mesh,
      start.judge_model.abstract_params,
      start.judge_model.logical_axes,
      start.judge_rules,
    )
  return types.FrozenParams(reference=reference, judge=judge)


def _make_state(params, *, optimizer, start) -> types.TrainState:
  return types.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    ema=jax.tree.map(jnp.copy, params) if start.ema else None,
  )


def _initial_state(
  mesh, model, optimizer, start, vocabulary, saved, rng
) -> tuple[types.TrainState, Any]:
  """The state to go on from, and its shardings."""
  make = functools.partial(_make_state, optimizer=optimizer, start=start)
  abstract = abstract_state(mesh, model, optimizer, start)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  if saved.latest_step() is not None:
    state = checkpoints.restore(saved, abstract)
    telemetry.say(f'Resumed from step {int(state.step):,}.')
    return state, shardings
  params = jax.jit(model.init, out_shardings=shardings.params)(rng)
  if start.initial_checkpoint_path is not None:
    loaded = checkpoints.load_params(
      start.initial_checkpoint_path,
      model,
      mesh,
      name='INITIAL_CHECKPOINT_PATH',
      vocabulary=vocabulary,
      fresh=start.fresh,
    )
    params = _overlay(params, loaded)
  return jax.jit(make, out_shardings=shardings)(params), shardings


def _evaluator(
  evaluation: Evaluation | None,
  model: model_lib.Model,
  mesh: jax.sharding.Mesh,
  rng: jax.Array,
  watchdog: performance.Watchdog,
) -> Callable[..., tuple[dict[str, float], dict[str, str]]]:
  """Makes evaluate(state, frozen) -> means, and a few samples as texts."""
  if evaluation is None:
    return lambda state, frozen: ({}, {})
  examples = evaluation.dataset()
  if len(examples) < evaluation.examples:
    raise ValueError(
      f'EVAL_EXAMPLES {evaluation.examples} is more than the {len(examples)} '
      'examples of the evaluation split.'
    )
  split = sharding.batch(mesh)
  batches.check_size(evaluation.batch_size, split, 'EVAL_BATCH_SIZE')
  measure = jax.jit(functools.partial(evaluation.metrics, model=model))

  def evaluate(state, frozen):
    rows = batches.in_order(
      examples,
      batch_size=evaluation.batch_size,
      sharding=split,
      limit=evaluation.examples,
    )
    found = []
    for i, (batch, _) in enumerate(rows):
      found.append(measure(state, frozen, batch, jax.random.fold_in(rng, i)))
      watchdog.alive(f'batch {i + 1} of an evaluation')
    samples = [m.pop('samples', None) for m in found]
    found = jax.device_get(found)
    means = {
      f'eval_{k}' if k != 'win_rate' else k: float(
        np.mean([m[k] for m in found])
      )
      for k in found[0]
    }
    return means, _texts(samples[0], examples.vocabulary)

  return evaluate


def _texts(
  samples: types.Completions | None, vocabulary: seqio.Vocabulary
) -> dict[str, str]:
  """A few prompts with their completions, for TensorBoard."""
  if samples is None:
    return {}
  rows = multihost_utils.process_allgather(samples, tiled=True)
  read = lambda tokens, n: vocabulary.decode(
    tokens.ids[n][tokens.mask[n]].tolist()
  )
  first = jax.tree.map(lambda x: x[:, 0], rows.completions)
  # Indented by four, Markdown shows a text as it is.
  return {
    f'sample_{n}': f'    {read(rows.prompts, n)}\n\n    {read(first, n)}'
    for n in range(min(_SAMPLES, len(first.ids)))
  }


def _write(writer, step, values, texts) -> None:
  writer.scalars(step, values)
  writer.texts(step, texts)


def _means(window, done, max_skipped) -> tuple[dict[str, float], float]:
  """Means over the updates up to `done` but those that were skipped."""
  window = jax.device_get(window)
  made, skipped = [], 0
  for step, metrics in enumerate(window, done - len(window) + 1):
    in_a_row = metrics.pop('skipped_in_a_row', 0)
    skipped += in_a_row > 0
    bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
    if in_a_row > max_skipped or bad and not in_a_row:
      values = ', '.join(f'{k} is {v}' for k, v in (bad or metrics).items())
      raise FloatingPointError(
        f'{values} at step {step}'
        + (f', the gradient of {in_a_row} updates in a row' if in_a_row else '')
        + '. The checkpoints in MODEL_DIR are from before it; a lower '
        'LEARNING_RATE is the usual remedy, MAX_SKIPPED leaves such updates '
        'out.'
      )
    if not in_a_row:
      made.append(metrics)
  means = {k: float(np.mean([m[k] for m in made])) for k in window[0] if made}
  tokens = means.pop('tokens', 0.0) * len(made)
  if skipped:
    means['skipped'] = skipped
  return means, tokens


def _describe(model_dir, state, frozen, mesh, examples) -> None:
  """Prints what runs, and saves versions beside the checkpoints."""
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  parts = [f'policy {size(state.params):,} parameters']
  for name in ('reference', 'judge'):
    params = getattr(frozen, name)
    if params is not None:
      parts.append(f'{name} {size(params):,}')
  shape = ' x '.join(f'{k} {v}' for k, v in mesh.shape.items())
  counts = ', '.join(f'{k} {v:,}' for k, v in examples.counts.items())
  telemetry.say(f'{", ".join(parts)}; mesh {shape}; {counts}')
  if jax.process_index() == 0:
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'seqio')
    versions = {p: importlib.metadata.version(p) for p in (*packages, 'numpy')}
    versions['commit'] = _commit()
    path = epath.Path(model_dir) / 'versions.json'
    path.write_text(json.dumps(versions, indent=1) + '\n')


def _commit() -> str | None:
  """The commit of the checkout that this file is in, if it is in one."""
  git = epath.Path(__file__).parent.parent / '.git'
  head = git / 'HEAD'
  if not head.exists():
    return None
  ref = head.read_text().strip().removeprefix('ref: ')
  if (git / ref).exists():
    return (git / ref).read_text().strip()
  packed = git / 'packed-refs'
  lines = packed.read_text().splitlines() if packed.exists() else []
  found = [line.split()[0] for line in lines if line.endswith(f' {ref}')]
  return found[0] if found else ref


def _overlay(params: types.Params, loaded: types.Params) -> types.Params:
  """`params` with what was loaded in place of its own."""
  return {
    key: _overlay(value, loaded[key])
    if isinstance(value, dict) and key in loaded
    else loaded.get(key, value)
    for key, value in params.items()
  }


def _due(step: int, period: int) -> bool:
  return bool(period) and step % period == 0
