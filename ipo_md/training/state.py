"""The initial state of a run, its optimizer and its frozen parameters."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ipo_md import checkpoints
from ipo_md import data
from ipo_md import models
from ipo_md import optim as optimizers
from ipo_md.core import identity
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.training import config


def make_optimizer(
  optimizer: Callable[[Any], optax.GradientTransformation],
  model: models.Model,
  watch: config.Watch,
) -> optax.GradientTransformation:
  """Makes the optimizer of a model's parameters, skipping updates if asked."""
  made = optimizer(model.logical_axes)
  if watch.max_skipped or watch.skip_gradient_norm is not None:
    made = optimizers.skipping(made, max_gradient_norm=watch.skip_gradient_norm)
  return made


def inputs(start: config.Start) -> dict[str, identity.Identity]:
  """Identifies the checkpoints of a run by the names of their settings."""
  return checkpoints.identify_all(
    {
      'INITIAL_CHECKPOINT_PATH': start.initial_checkpoint_path,
      'REFERENCE_CHECKPOINT_PATH': start.reference_checkpoint_path,
      'JUDGE_CHECKPOINT_PATH': start.judge_checkpoint_path,
    }
  )


def data_inputs(examples: data.Dataset) -> dict[str, identity.Identity]:
  """Identifies the training examples, wherever their task reads them."""
  arrays = []
  for part in examples.examples:
    for ragged in (part.prompts, part.targets, part.rendered):
      if ragged is not None:
        arrays += [ragged.ids, ragged.starts]
    arrays += [part.scores[name] for name in sorted(part.scores)]
  tasks = ', '.join(part.name for part in examples.examples)
  return {
    'MIXTURE_OR_TASK_NAME, its tokens': identity.Identity(
      path=tasks, digest=identity.of_arrays(arrays)
    )
  }


def load_frozen(
  mesh: jax.sharding.Mesh,
  model: models.Model,
  start: config.Start,
  vocabulary: types.Vocabulary,
) -> types.FrozenParams:
  """Loads reference and judge from their own paths into their own buffers."""
  reference = judge = None
  if start.reference_checkpoint_path is not None:
    reference = checkpoints.load_params(
      start.reference_checkpoint_path,
      model.base,
      mesh,
      name='INITIAL_CHECKPOINT_PATH'
      if start.reference_checkpoint_path == start.initial_checkpoint_path
      else 'REFERENCE_CHECKPOINT_PATH',
      vocabulary=vocabulary,
      rules=start.reference_rules,
    )
  if start.judge_checkpoint_path is not None:
    judge = checkpoints.load_params(
      start.judge_checkpoint_path,
      _judge_model(start),
      mesh,
      name='JUDGE_CHECKPOINT_PATH',
      vocabulary=vocabulary,
      rules=start.judge_rules,
    )
  return types.FrozenParams(reference=reference, judge=judge)


def abstract_state(
  mesh: jax.sharding.Mesh,
  model: models.Model,
  optimizer: optax.GradientTransformation,
  start: config.Start,
) -> types.TrainState:
  """Returns the state of a run as `jax.ShapeDtypeStruct`s with shardings."""
  make = functools.partial(_make_state, optimizer=optimizer, start=start)
  abstract = jax.eval_shape(make, model.abstract_params)
  shardings = sharding.like_params(
    mesh,
    abstract,
    sharding.params(mesh, model.abstract_params, model.logical_axes),
  )
  return sharding.with_shardings(abstract, shardings)


def abstract_frozen(
  mesh: jax.sharding.Mesh, model: models.Model, start: config.Start
) -> types.FrozenParams:
  """Returns reference and judge as `jax.ShapeDtypeStruct`s with shardings."""
  reference = judge = None
  if start.reference_checkpoint_path is not None:
    reference = sharding.abstract_params(
      mesh,
      model.base.abstract_params,
      model.base.logical_axes,
      start.reference_rules,
    )
  if start.judge_checkpoint_path is not None:
    network = _judge_model(start)
    judge = sharding.abstract_params(
      mesh, network.abstract_params, network.logical_axes, start.judge_rules
    )
  return types.FrozenParams(reference=reference, judge=judge)


def _judge_model(start: config.Start) -> models.Model:
  if start.judge_model is None:
    raise ValueError(
      'JUDGE_CHECKPOINT_PATH needs the network of the judge '
      '(training.Start.judge_model).'
    )
  return start.judge_model


def _make_state(params, *, optimizer, start) -> types.TrainState:
  return types.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    players={} if start.players is None else start.players.first(params),
  )


def initial_state(
  mesh, model, optimizer, start, vocabulary, saved, rng
) -> types.TrainState:
  """Restores or initialises the state."""
  make = functools.partial(_make_state, optimizer=optimizer, start=start)
  abstract = abstract_state(mesh, model, optimizer, start)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  if saved.latest_step() is not None:
    state = checkpoints.restore(saved, abstract)
    progress.say(f'Resumed from step {int(state.step):,}.')
    return state
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
  return jax.jit(make, out_shardings=shardings)(params)


def _overlay(params: types.Params, loaded: types.Params) -> types.Params:
  """Returns `params` with loaded parameters in place of their own."""
  return {
    key: _overlay(value, loaded[key])
    if isinstance(value, dict) and key in loaded
    else loaded.get(key, value)
    for key, value in params.items()
  }
