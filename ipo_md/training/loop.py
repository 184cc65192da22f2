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
from ipo_md.core import identity
from ipo_md.core import metrics as metrics_lib
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import partitioning
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.core import trackers
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
  example: Sequence[Any] | None = None,
) -> Callable[..., Any]:
  """Compiles a step as it is. `algorithms.two_programs` is the alternative.

  Args:
    step: (state, frozen, batch, rng) -> (state, metrics).
    model: Network that is trained; not needed here.
    dataset: Data set of the batches; not needed here.
    state_sharding: Shardings of the state, which is donated.
    example: Arguments of the step, or their shapes. The step is traced with
      them at once, so that its errors come before the run writes anything. The
      first update reuses the trace.
  """
  del model, dataset
  update = partitioning.jit_update(step, state_sharding)
  if example is not None:
    update.trace(*example)
  return update


@model_dir_lib.may_change(
  'model_dir', 'mesh_shape', 'tracker', 'accept_changed_inputs'
)
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
  tracker: trackers.Tracker | None = None,
  accept_changed_inputs: bool = False,
) -> None:
  """Runs updates until TRAIN_STEPS, from the last checkpoint if there is one.

  The key of an update is fold_in(run key, step), and its batch a function of
  (seed, step): a resumed run is the uninterrupted run, bit for bit.

  Args:
    model_dir: MODEL_DIR, the folder of checkpoints and metrics.
    seed: SEED of initialisation, order of the data, dropout and samples.
    mesh_shape: MESH_SHAPE, sizes of the mesh axes.
    batch_size: BATCH_SIZE, examples of an update over all hosts.
    model: Network that is trained.
    optimizer: Function from logical axes to the optimizer of the parameters.
    step: A step of `algorithms`, with model and optimizer left open.
    dataset: Function that loads the training examples.
    schedule: When the run logs, evaluates, saves and ends.
    start: Where parameters come from.
    evaluation: What is measured on held-out examples; None measures nothing.
    watch: Safeguards and profiles of the run.
    program: Function that compiles the step.
    microbatches: MICROBATCHES, parts of a batch whose gradients are summed one
      after another. It takes less memory and as much work.
    part_weight: Weight of a part in the sum (`optim.accumulate`).
    tracker: TRACKER, which shows the metrics elsewhere than in TensorBoard.
    accept_changed_inputs: ACCEPT_CHANGED_INPUTS, whether the run may be resumed
      though what it reads by path has changed.

  Raises:
    FloatingPointError: A metric is not finite, or too many updates were
      skipped. The message names metric and step. Checkpoints stay as they are.
    ValueError: The configuration does not fit together.
  """
  # Everything that can be refused is refused before anything is written.
  trackers.check(tracker)
  mesh = sharding.make_mesh(mesh_shape)
  optim.check(batch_size, microbatches, mesh)
  sharding.params(mesh, model.abstract_params, model.logical_axes)
  abstract_frozen = state_lib.abstract_frozen(mesh, model, start)
  inputs = identity.of_run() | state_lib.inputs(start)
  model_dir = model_dir_lib.check(
    model_dir,
    gin.config_str(),
    inputs=inputs,
    accept_changed_inputs=accept_changed_inputs,
  )
  model_dir_lib.check_steps(model_dir, schedule.train_steps)
  if model_dir_lib.is_completed(model_dir, schedule.train_steps):
    progress.say(f'{model_dir} is complete: {schedule.train_steps:,} steps.')
    return
  step = optim.accumulate(step, parts=microbatches, weight=part_weight)
  examples = dataset()
  rule = state_lib.make_optimizer(optimizer, model, watch)
  data.check_vocabulary(examples, model.config.vocab_size)
  init_key, step_key, eval_key = jax.random.split(jax.random.key(seed), 3)
  training = data.Batches(
    examples, batch_size=batch_size, seed=seed, sharding=sharding.batch(mesh)
  )
  abstract = state_lib.abstract_state(mesh, model, rule, start)
  with jax.set_mesh(mesh):
    update = program(
      functools.partial(step, model=model, optimizer=rule),
      model=model,
      dataset=examples,
      state_sharding=jax.tree.map(lambda x: x.sharding, abstract),
      example=(
        abstract,
        abstract_frozen,
        training(0),
        jax.random.fold_in(step_key, 0),
      ),
    )
  with (
    jax.set_mesh(mesh),
    model_dir_lib.claimed(
      model_dir,
      gin.config_str(),
      inputs=inputs | state_lib.data_inputs(examples),
      accept_changed_inputs=accept_changed_inputs,
    ),
    meter_lib.Meter() as meter,
    checkpoints.open_manager(model_dir, keep=schedule.keep) as saved,
    metrics_lib.MetricWriter(model_dir, tracker) as writer,
    watchdog_lib.Watchdog(watch.hang_seconds) as watchdog,
    profiler_lib.Profiler(
      model_dir, first=watch.profile_start, count=watch.profile_steps
    ) as profiler,
  ):
    with meter.phase('start'):
      evaluate = evaluator.evaluator(
        evaluation, model, mesh, eval_key, watchdog
      )
      frozen = state_lib.load_frozen(mesh, model, start, examples.vocabulary)
      state = state_lib.initial_state(
        mesh, model, rule, start, examples.vocabulary, saved, init_key
      )
      logbook.describe(model_dir, state, frozen, mesh, examples)
      if jax.process_index() == 0:
        checkpoints.save_model_folder(
          model_dir,
          model.config,
          examples.vocabulary,
          start.model_config_path,
          examples.prompt_format.template_text,
        )
    adapts = checkpoints.adapted(model, start.reference_checkpoint_path)
    model_dir_lib.reopen(model_dir)
    first = int(state.step)
    log = logbook.Logbook(
      writer, meter, state, first=first, schedule=schedule, watch=watch
    )
    if first == 0:
      log.counts(examples.counts)
      log.evaluation(0, evaluate, state, frozen)
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
      log.add(metrics)
      last = done == schedule.train_steps
      preempted = multihost_utils.reached_preemption_sync_point(done)
      saving = last or preempted or schedule.saves_at(done)
      logging = saving or schedule.logs_at(done)
      if logging:
        log.close_window(done)
      measured = {}
      if last or schedule.evaluates_at(done):
        measured = log.evaluation(done, evaluate, state, frozen)
      if saving:
        with meter.phase('checkpoint'):
          checkpoints.save(
            saved,
            state,
            examples.vocabulary,
            measured.get('win_rate'),
            adapts,
          )
      if logging:
        log.show(done, measured)
        profiler.look(done)
      if preempted and not last:
        checkpoints.wait(saved)
        progress.say(
          f'Stopped by SIGTERM: step {done:,} is saved in {model_dir}.'
        )
        return
    log.close()
    checkpoints.wait(saved)
    if jax.process_index() == 0:
      path = epath.Path(model_dir) / 'operative_config.gin'
      path.write_text(gin.operative_config_str())
    model_dir_lib.complete(model_dir, schedule.train_steps)


train.saves_on_sigterm = True  # pyright: ignore[reportFunctionMemberAccess]  # typeshed's functions lack it
