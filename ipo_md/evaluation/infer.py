"""A checkpoint and prompts -> completions with log-probabilities.

  MODEL_DIR/completions.jsonl   a line for each prompt, in their order:
    {"index": 0, "prompt": "...", "completions": [
      {"text": "...", "tokens": 17, "ended": true, "log_prob": -21.3,
       "reference_log_prob": -22.8}, ...]}

Log-probabilities are sums in nats at temperature 1. A run that was killed goes
on after its last whole line and writes what it would have written; inputs.json
says of which checkpoints and prompts its lines are.
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
import seqio

from ipo_md import checkpoints
from ipo_md import data
from ipo_md import models
from ipo_md import sampling
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import progress
from ipo_md.core import sharding
from ipo_md.core import types

COMPLETIONS_FILE = 'completions.jsonl'
INPUTS_FILE = 'inputs.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """Where prompts come from.

  Attributes:
    prompts_file: PROMPTS_FILE, a prompt a line, or JSON lines with a field
      "prompt" if its name ends in .jsonl; None: the task's.
    task: `data.load` of a task with bare prompts.
    vocabulary: `data.vocabulary`, of the file's prompts.
    prompt_format: of the model.
    task_feature_lengths: TASK_FEATURE_LENGTHS, of which 'inputs' counts.
  """

  prompts_file: str | None
  task: Callable[[], data.Dataset]
  vocabulary: Callable[[], seqio.Vocabulary]
  prompt_format: data.PromptFormat
  task_feature_lengths: Mapping[str, int]

  def load(self) -> data.Dataset:
    """Raises ValueError: the file, or a row of it, is not there or empty."""
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
  path = epath.Path(prompts_file)
  if not path.exists():
    raise ValueError(f'There is no file {prompts_file} (PROMPTS_FILE).')
  for number, line in enumerate(path.read_text().splitlines(), 1):
    if path.suffix == '.jsonl':
      try:
        line = json.loads(line)['prompt']
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f'PROMPTS_FILE {prompts_file}, row {number}: no JSON object with a '
          f'field "prompt" ({error!r}).'
        ) from error
    if not isinstance(line, str) or not line.strip():
      raise ValueError(
        f'PROMPTS_FILE {prompts_file}, row {number}: the prompt is empty or no '
        'text.'
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
  rounding alone.

  Args:
    model_dir: MODEL_DIR, for the completions.
    seed: SEED of the samples.
    mesh_shape: MESH_SHAPE.
    model: network of policy and reference.
    checkpoint_path: CHECKPOINT_PATH, of the policy, in any format.
    prompts: what is completed.
    batch_size: BATCH_SIZE, prompts at a time.
    sampler: how completions are drawn.
    mixture_coefs: MIXTURE_COEFS, K weights of the reference; zeros draw from
      the policy alone.
    reference_checkpoint_path: REFERENCE_CHECKPOINT_PATH; None: no reference.

  Raises:
    ValueError: the configuration does not fit together.
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
  output = epath.Path(model_dir) / COMPLETIONS_FILE
  done = _whole_lines(output)
  bare = [e.prompts.row(i) for e in dataset.examples for i in range(len(e))]
  inputs = {'prompts': hashlib.sha256(b'|'.join(map(bytes, bare))).hexdigest()}
  for name, path in (
    ('CHECKPOINT_PATH', checkpoint_path),
    ('REFERENCE_CHECKPOINT_PATH', reference_checkpoint_path),
  ):
    if path is not None:
      inputs[name] = checkpoints.identity(path, name)
  _keep_inputs(epath.Path(model_dir) / INPUTS_FILE, inputs, done)
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
      lines = _lines(
        drawn, bare, i * batch_size, dataset.vocabulary, sampler.eos_id
      )
      if jax.process_index() == 0:
        with output.open('a') as file:
          file.writelines(lines[max(done - i * batch_size, 0) :])
  model_dir_lib.complete(model_dir, 0)


def _keep_inputs(
  path: epath.Path, inputs: Mapping[str, str], done: int
) -> None:
  """Writes down what is read, or refuses to add to lines made of another.

  Bindings do not tell: a MODEL_DIR gets newer checkpoints, a file new rows.
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
      f'{path.parent} (MODEL_DIR) has {done} lines made of something else; '
      'choose another one:\n  ' + '\n  '.join(changes)
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
  """Completions [B, K, T], log pi and log pi_ref of each [B, K]."""
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
  theirs = drawn.reference_log_probs
  if theirs is None and reference is not None:
    theirs, _ = sampling.log_probs(
      model,
      reference,
      types.Completions(prompts=prompts, completions=drawn.tokens),
    )
  total = functools.partial(jnp.sum, axis=-1)
  ours = total(drawn.policy_log_probs)
  return drawn.tokens, ours, None if theirs is None else total(theirs)


def _lines(
  drawn: tuple[types.Tokens, np.ndarray, np.ndarray | None],
  bare: Sequence[np.ndarray],
  first: int,
  vocabulary: seqio.Vocabulary,
  eos_id: int,
) -> list[str]:
  """The lines of what `_draw` made of the prompts from number `first` on."""
  tokens, log_prob, reference_log_prob = drawn
  decode = lambda ids: vocabulary.decode(ids.tolist())
  lines = []
  for row, prompt in enumerate(bare[first : first + len(log_prob)]):
    completions = []
    for k, mask in enumerate(tokens.mask[row]):
      ids = tokens.ids[row, k][mask]
      completion = {
        'text': decode(ids[ids != eos_id]),
        'tokens': len(ids),
        'ended': bool(np.any(ids == eos_id)),
        'log_prob': float(log_prob[row, k]),
      }
      if reference_log_prob is not None:
        completion['reference_log_prob'] = float(reference_log_prob[row, k])
      completions.append(completion)
    line = {
      'index': first + row,
      'prompt': decode(prompt),
      'completions': completions,
    }
    lines.append(json.dumps(line, ensure_ascii=False) + '\n')
  return lines


def _whole_lines(path: epath.Path) -> int:
  """How many lines a killed run left; half a line after them is cut off."""
  if not path.exists():
    return 0
  content = path.read_bytes()
  whole = content[: content.rfind(b'\n') + 1]
  if whole != content and jax.process_index() == 0:
    path.write_bytes(whole)
  return whole.count(b'\n')
