"""The training loop, read top to bottom; no maths."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

from etils import epath
import gin
import jax
from jax.experimental import multihost_utils
import optax

from ipo_md import checkpoints
from ipo_md import data
from ipo_md import models
from ipo_md import optim
from ipo_md.core import metrics as metrics_lib
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import partitioning
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.training import config
from ipo_md.training import evaluator
from ipo_md.training import logbook
from ipo_md.training import meter as meter_lib
from ipo_md.training import profiler as profiler_lib
from ipo_md.training import state as state_lib
from ipo_md.training import watchdog as watchdog_lib


def one_program(
  step: Callable[..., Any],
  *,
  model: models.Model,
  dataset: data.Dataset,
  state_sharding: Any,
) -> Callable[..., Any]:
  """Compiles a step as it is. `algorithms.two_programs` goes over the host.

  Args:
    step: (state, frozen, batch, rng) -> (state, metrics).
    model: network that is trained.
    dataset: of the batches.
    state_sharding: of the state, which is donated.
  """
  del model, dataset
  return partitioning.jit_update(step, state_sharding)


def train(
  *,
  model_dir: str,
  seed: int,
  mesh_shape: Sequence[int],
  batch_size: int,
  model: models.Model,
  optimizer: Callable[[Any], optax.GradientTransformation],
  step: Callable[..., Any],
  dataset: Callable[[], data.Dataset],
  schedule: config.Schedule,
  start: config.Start,
  evaluation: config.Evaluation | None = None,
  watch: config.Watch = config.Watch(),
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
    part_weight: see `optim.accumulate`.

  Raises:
    FloatingPointError: a metric is not finite, or more updates were skipped
      than may be; names it and the step. The checkpoints that are there stay
      as they are.
    ValueError: the configuration does not fit together.
  """
  # What does not go together is said before anything is made.
  mesh = sharding.make_mesh(mesh_shape)
  optim.check(batch_size, microbatches, mesh)
  sharding.params(mesh, model.abstract_params, model.logical_axes)
  state_lib.abstract_frozen(mesh, model, start)
  model_dir_lib.claim(model_dir, gin.config_str())
  if model_dir_lib.is_completed(model_dir, schedule.train_steps):
    progress.say(f'{model_dir} is complete: {schedule.train_steps:,} steps.')
    return
  step = optim.accumulate(step, parts=microbatches, weight=part_weight)
  examples = dataset()
  optimizer = state_lib.make_optimizer(optimizer, model, watch)
  data.check_vocabulary(examples, model.config.vocab_size)
  init_key, step_key, eval_key = jax.random.split(jax.random.key(seed), 3)
  with (
    jax.set_mesh(mesh),
    meter_lib.Meter() as meter,
    checkpoints.open_manager(model_dir, keep=schedule.keep) as saved,
    metrics_lib.MetricWriter(model_dir) as writer,
    watchdog_lib.Watchdog(watch.hang_seconds) as watchdog,
    profiler_lib.Profiler(
      model_dir, first=watch.profile_start, count=watch.profile_steps
    ) as profiler,
  ):
    with meter.phase('start'):
      training = data.Batches(
        examples,
        batch_size=batch_size,
        seed=seed,
        sharding=sharding.batch(mesh),
      )
      evaluate = evaluator.evaluator(
        evaluation, model, mesh, eval_key, watchdog
      )
      frozen = state_lib.load_frozen(mesh, model, start, examples.vocabulary)
      state, shardings = state_lib.initial_state(
        mesh, model, optimizer, start, examples.vocabulary, saved, init_key
      )
      logbook.describe(model_dir, state, frozen, mesh, examples)
    update = program(
      functools.partial(step, model=model, optimizer=optimizer),
      model=model,
      dataset=examples,
      state_sharding=shardings,
    )
    adapts = checkpoints.adapted(model, start.reference_checkpoint_path)
    model_dir_lib.reopen(model_dir)
    first = int(state.step)
    if first == 0:
      writer.scalars(0, {f'data_{k}': v for k, v in examples.counts.items()})
      with meter.phase('evaluation'):
        logbook.write(writer, 0, *evaluate(state, frozen))
    line = progress.ProgressLine(schedule.train_steps, first)
    size = sum(x.size for x in jax.tree.leaves(state.params))
    window = []
    steps = range(first, schedule.train_steps)
    for done, batch in meter.waiting(
      'data', enumerate(data.prefetch(training, steps), first + 1)
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
          means, tokens = logbook.means(window, done, watch.max_skipped)
        writer.scalars(done, means)
      if _due(done, schedule.eval_period) or last:
        with meter.phase('evaluation'):
          measured, texts = evaluate(state, frozen)
        logbook.write(writer, done, measured, texts)
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
          progress.say(
            f'Compiled again up to step {done:,}, as shapes vary: {program}'
          )
      if preempted and not last:
        checkpoints.wait(saved)
        progress.say(
          f'Stopped by SIGTERM: step {done:,} is saved in {model_dir}.'
        )
        return
    line.close()
    checkpoints.wait(saved)
  if jax.process_index() == 0:
    path = epath.Path(model_dir) / 'operative_config.gin'
    path.write_text(gin.operative_config_str())
  model_dir_lib.complete(model_dir, schedule.train_steps)


def _due(step: int, period: int) -> bool:
  return bool(period) and step % period == 0
