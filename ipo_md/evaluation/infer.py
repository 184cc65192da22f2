"""Samples completions of prompts from a checkpoint.

  MODEL_DIR/completions.jsonl  completions with their log-probabilities, a line
                               for each prompt (see `completions_file`)
  MODEL_DIR/inputs.json        the checkpoints and prompts that they came from

A run that was killed continues after its last whole line, and writes the lines
that it would have written otherwise.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
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
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.evaluation import completions_file

INPUTS_FILE = 'inputs.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """The source of the prompts: a file, or else a task.

  Attributes:
    prompts_file: PROMPTS_FILE, with a prompt on each line, or JSON lines with a
      field "prompt" if its name ends in .jsonl. None for the prompts of a task.
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

  def load(self) -> data.Dataset:
    """Loads the prompts.

    Raises:
      ValueError: The file does not exist, or it or a row of it is empty.
    """
    if self.prompts_file is None:
      return self.task()
    vocabulary = self.vocabulary()
    rows = [vocabulary.encode(text) for text in _read(self.prompts_file)]
    if not rows:
      raise ValueError(f'PROMPTS_FILE {self.prompts_file} is empty.')
    lengths = [len(row) for row in rows]
    room = self.prompt_format.room(self.task_feature_lengths['inputs'])
    found = data.Examples(
      name=self.prompts_file,
      prompts=data.Ragged(
        ids=np.concatenate(rows).astype(np.int32),
        starts=np.cumsum([0, *lengths]),
      ),
      targets=None,
      k=0,
      scores={},
    )
    return data.Dataset(
      examples=(found,),
      rates=(1.0,),
      lengths=dict(self.task_feature_lengths),
      prompt_format=self.prompt_format,
      prompts_only=True,
      vocabulary=vocabulary,
      counts={
        'examples': len(rows),
        'prompts_cut': sum(length > room for length in lengths),
      },
    )


def _read(prompts_file: str) -> Iterator[str]:
  """Yields the prompts of a file."""
  path = epath.Path(prompts_file)
  if not path.exists():
    raise ValueError(f'There is no file {prompts_file} (PROMPTS_FILE).')
  for number, line in enumerate(path.read_text().splitlines(), 1):
    if path.suffix == '.jsonl':
      try:
        line = json.loads(line)['prompt']
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f'PROMPTS_FILE {prompts_file}, row {number} is not a JSON object '
          f'with a field "prompt" ({error!r}).'
        ) from error
    if not isinstance(line, str) or not line.strip():
      raise ValueError(
        f'PROMPTS_FILE {prompts_file}, row {number}: the prompt is empty or '
        'not a text.'
      )
    yield line


@model_dir_lib.may_change('model_dir', 'mesh_shape', 'batch_size')
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
  model_dir = model_dir_lib.claim(model_dir, gin.config_str())
  if model_dir_lib.is_completed(model_dir, 0):
    progress.say(f'{model_dir} is complete.')
    return
  mesh = sharding.make_mesh(mesh_shape)
  dataset = prompts.load()
  data.check_vocabulary(dataset, model.config.vocab_size)
  output = epath.Path(model_dir) / completions_file.NAME
  done = completions_file.count_whole_lines(output)
  bare = [e.prompts.row(i) for e in dataset.examples for i in range(len(e))]
  inputs = {'prompts': hashlib.sha256(b'|'.join(map(bytes, bare))).hexdigest()}
  for name, path in (
    ('CHECKPOINT_PATH', checkpoint_path),
    ('REFERENCE_CHECKPOINT_PATH', reference_checkpoint_path),
  ):
    if path is not None:
      inputs[name] = checkpoints.identity(path, name)
  _record_inputs(epath.Path(model_dir) / INPUTS_FILE, inputs, done)
  with jax.set_mesh(mesh):
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


def _record_inputs(
  path: epath.Path, inputs: Mapping[str, str], done: int
) -> None:
  """Records the inputs of a run, or checks them against those of its lines.

  Equal bindings do not guarantee equal inputs: a MODEL_DIR may have received
  newer checkpoints since, and a file new rows.

  Args:
    path: inputs.json.
    inputs: Identity of each input.
    done: Number of lines that MODEL_DIR already has.

  Raises:
    ValueError: The lines came from other inputs.
  """
  if not (done and path.exists()):
    if jax.process_index() == 0:
      path.write_text(json.dumps(inputs, indent=1) + '\n')
    return
  before = json.loads(path.read_text())
  if before != inputs:
    changes = [
      f'{name}: {before.get(name)} then, {inputs.get(name)} now'
      for name in sorted(before | inputs)
      if before.get(name) != inputs.get(name)
    ]
    raise ValueError(
      f'{path.parent} (MODEL_DIR) has {done} lines from other inputs; choose '
      'another MODEL_DIR:\n  ' + '\n  '.join(changes)
    )


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
