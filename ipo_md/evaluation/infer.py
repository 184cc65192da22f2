"""Samples completions of prompts from a checkpoint.

  MODEL_DIR/completions.jsonl  completions with their log-probabilities, a line
                               for each prompt (see `completions_file`)
  MODEL_DIR/inputs.json        the checkpoints and prompts that they came from

A run that was killed continues after its last whole line, and writes the lines
that it would have written otherwise.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import itertools
import math

from etils import epath
import gin
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from ipo_md import checkpoints
from ipo_md import data
from ipo_md import models
from ipo_md import sampling
from ipo_md.core import identity
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import paths
from ipo_md.core import progress
from ipo_md.core import row_paths
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.evaluation import completions_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """The source of the prompts: a file, or else a task.

  Attributes:
    prompts_file: PROMPTS_FILE, with a prompt on each line; or rows with a field
      "prompt", a text or a list of messages, if its name ends in .jsonl or
      .jsonl.gz or if it is of Parquet or Arrow. None for the prompts of a task.
    task: Function that loads a task of prompts without targets (`data.load`).
    vocabulary: Function that returns the vocabulary for the prompts of a file
      (`data.vocabulary`).
    prompt_format: Prompt format of the model.
    task_feature_lengths: TASK_FEATURE_LENGTHS. Only 'inputs' is read.
  """

  prompts_file: str | None
  task: Callable[[], data.Dataset]
  vocabulary: Callable[[], types.Vocabulary]
  prompt_format: data.PromptFormat
  task_feature_lengths: Mapping[str, int]

  def inputs(self) -> dict[str, identity.Identity]:
    """Identifies the file of the prompts, if there is one."""
    if self.prompts_file is None:
      return {}
    found = row_paths.identify(self.prompts_file, 'PROMPTS_FILE')
    return {} if found is None else {'PROMPTS_FILE': found}

  def load(self) -> data.Dataset:
    """Loads the prompts.

    Raises:
      ValueError: The file does not exist, or it or a row of it is empty.
    """
    if self.prompts_file is None:
      return self.task()
    vocabulary = self.vocabulary()
    file = paths.absolute(self.prompts_file, 'PROMPTS_FILE')
    length = self.task_feature_lengths['inputs']
    room = self.prompt_format.room(length)
    chat = self.prompt_format.chat(vocabulary, length)
    prompts = list(data.prompts_of(file, 'PROMPTS_FILE'))
    found = data.of_prompts(self.prompts_file, prompts, vocabulary, chat)
    return data.Dataset(
      examples=(found,),
      rates=(1.0,),
      lengths=dict(self.task_feature_lengths),
      prompt_format=self.prompt_format,
      prompts_only=True,
      vocabulary=vocabulary,
      counts=data.count([found], vocabulary, room=room, limit=None),
    )


@model_dir_lib.may_change(
  'model_dir', 'mesh_shape', 'batch_size', 'accept_changed_inputs'
)
def infer(
  *,
  model_dir: str,
  seed: int,
  mesh_shape: Sequence[int],
  model: models.Model,
  checkpoint_path: str,
  prompts: Prompts,
  batch_size: int,
  sampler: sampling.Sampler,
  mixture_coefs: Sequence[float],
  reference_checkpoint_path: str | None = None,
  accept_changed_inputs: bool = False,
) -> None:
  """Writes K completions of every prompt.

  The key of a prompt is fold_in(SEED's key, its index), so BATCH_SIZE changes
  nothing but rounding.

  Args:
    model_dir: MODEL_DIR, the folder of the completions.
    seed: SEED of the samples.
    mesh_shape: MESH_SHAPE.
    model: Network of the policy and of the reference.
    checkpoint_path: CHECKPOINT_PATH of the policy, in any format.
    prompts: Prompts that are completed.
    batch_size: BATCH_SIZE, the number of prompts at a time.
    sampler: Sampler of the completions.
    mixture_coefs: MIXTURE_COEFS, K weights of the reference. Zeros sample from
      the policy alone.
    reference_checkpoint_path: REFERENCE_CHECKPOINT_PATH, or None to write no
      log-probabilities of a reference.
    accept_changed_inputs: ACCEPT_CHANGED_INPUTS, whether lines that were made
      from other checkpoints or prompts are accepted.

  Raises:
    ValueError: The configuration contradicts itself, or MODEL_DIR has lines of
      other checkpoints or prompts.
  """
  sampling.validate(mixture_coefs)
  if any(mixture_coefs) and reference_checkpoint_path is None:
    raise ValueError(
      f'MIXTURE_COEFS = {tuple(mixture_coefs)} needs a reference policy '
      '(REFERENCE_CHECKPOINT_PATH).'
    )
  inputs = identity.of_run() | checkpoints.identify_all(
    {
      'CHECKPOINT_PATH': checkpoint_path,
      'REFERENCE_CHECKPOINT_PATH': reference_checkpoint_path,
    }
  )
  inputs |= prompts.inputs()
  model_dir = model_dir_lib.check(
    model_dir,
    gin.config_str(),
    inputs=inputs,
    accept_changed_inputs=accept_changed_inputs,
  )
  if model_dir_lib.is_completed(model_dir, 0):
    progress.say(f'{model_dir} is complete.')
    return
  mesh = sharding.make_mesh(mesh_shape)
  dataset = prompts.load()
  progress.say(progress.counted(dataset.counts))
  data.check_vocabulary(dataset, model.config.vocab_size)
  output = epath.Path(model_dir) / completions_file.NAME
  bare = [e.prompts.row(i) for e in dataset.examples for i in range(len(e))]
  inputs['prompts'] = identity.Identity(
    path=prompts.prompts_file or dataset.examples[0].name,
    digest=hashlib.sha256(
      b'|'.join(map(bytes, bare + _rendered(dataset)))
    ).hexdigest()[:16],
  )
  with (
    jax.set_mesh(mesh),
    model_dir_lib.claimed(
      model_dir,
      gin.config_str(),
      inputs=inputs,
      accept_changed_inputs=accept_changed_inputs,
    ),
  ):
    done = completions_file.count_whole_lines(output)
    load = functools.partial(
      checkpoints.load_params, mesh=mesh, vocabulary=dataset.vocabulary
    )
    reference = None
    if reference_checkpoint_path is not None:
      reference = load(
        reference_checkpoint_path, model.base, name='REFERENCE_CHECKPOINT_PATH'
      )
    params = load(checkpoint_path, model, name='CHECKPOINT_PATH')
    draw = jax.jit(
      functools.partial(
        _draw, model=model, sampler=sampler, mixture_coefs=mixture_coefs
      )
    )
    rows = data.in_order(
      dataset, batch_size=batch_size, sharding=sharding.batch(mesh)
    )
    first = done // batch_size
    rows = itertools.islice(enumerate(rows), first, None)
    count = math.ceil(len(dataset) / batch_size) - first
    for i, (batch, _) in progress.progress(rows, count, 'sampling'):
      keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(seed), i * batch_size + jnp.arange(batch_size)
      )
      drawn = draw(params, reference, batch, keys)
      drawn = multihost_utils.process_allgather(drawn, tiled=True)
      lines = completions_file.lines(
        drawn, bare, i * batch_size, dataset.vocabulary, sampler.eos_id
      )
      if jax.process_index() == 0:
        with output.open('a') as file:
          file.writelines(lines[max(done - i * batch_size, 0) :])
    model_dir_lib.complete(model_dir, 0)


def _rendered(dataset: data.Dataset) -> list[np.ndarray]:
  """Returns the prompts that a chat template made, if there is one."""
  found = [e.rendered for e in dataset.examples if e.rendered is not None]
  return [ragged.row(i) for ragged in found for i in range(len(ragged))]


def _draw(
  params: types.Params,
  reference: types.Params | None,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  model: models.Model,
  sampler: sampling.Sampler,
  mixture_coefs: Sequence[float],
) -> tuple[types.Tokens, jax.Array, jax.Array | None]:
  """Samples K completions of each prompt.

  Returns:
    Completions [B, K, T], log pi [B, K], and log pi_ref [B, K] or None.
  """
  policy = model.policy(params, types.FrozenParams(reference=reference))
  drawn = sampling.complete(
    model,
    policy,
    prompts,
    rng,
    sampler=sampler,
    mixture_coefs=mixture_coefs,
    player=reference,
  )
  completions = types.Completions(prompts=prompts, completions=drawn.tokens)
  log_prob = functools.partial(sampling.log_prob, model)
  theirs = None if reference is None else log_prob(reference, completions)
  return drawn.tokens, log_prob(policy, completions), theirs
