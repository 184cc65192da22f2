"""Compiles a training run for a TPU slice, on a machine without TPUs.

No checkpoint and no data are read: gin gives the shapes of parameters, state
and batch. The report on the compiled program is printed and saved:

  MODEL_DIR/precompile.json, precompile.txt    the report
  MODEL_DIR/shardings.txt                      the sharding of every parameter

Memory and collectives are read from the program. Cycles are the compiler's
estimates, and bounds are computed by hand (`roofline`). Nothing is measured.
"""

from collections.abc import Mapping
import functools
import json
import resource
import time
from typing import Any

from etils import epath
import gin
import jax
import jax.numpy as jnp

from ipo_md import data
from ipo_md import judges
from ipo_md import optim
from ipo_md import training
from ipo_md.algorithms import needs
from ipo_md.algorithms import step_kinds
from ipo_md.core import partitioning
from ipo_md.core import paths
from ipo_md.core import sharding
from ipo_md.core import tpu_slices
from ipo_md.core import types
from ipo_md.tpu import devices as devices_lib
from ipo_md.tpu import hlo
from ipo_md.tpu import networks
from ipo_md.tpu import report as report_lib
from ipo_md.tpu import roofline
from ipo_md.tpu import search


class Words:
  """A stand-in for a vocabulary that makes one token per word.

  Args:
    eos_id: EOS_ID.
  """

  bos_id = unk_id = None
  pad_id = 0

  def __init__(self, eos_id: types.EosId):
    self.eos_id = types.eos_ids(eos_id)[0]

  def encode(self, text: str) -> list[int]:
    return [2] * len(text.split())


def precompile(
  *,
  model_dir: str,
  topology: str,
  num_slices: int = 1,
  fit: str | None = None,
  print_shardings: bool = False,
  num_completions: int = 4,
) -> None:
  """Compiles the run that gin describes and reports on it.

  Args:
    model_dir: MODEL_DIR, the folder of the report.
    topology: TOPOLOGY of a slice, such as 'v5e:4x4' or 'v4:4x4x4'.
    num_slices: NUM_SLICES, the number of slices, joined by the data centre's
      network.
    fit: FIT. None compiles the run as it is. 'batch' also finds the largest
      BATCH_SIZE that fits, and 'slice' the smallest slice.
    print_shardings: PRINT_SHARDINGS, whether to print the table of shardings.
    num_completions: NUM_COMPLETIONS, the K of a data set of rewards.

  Raises:
    ValueError: If there is no such topology, if the mesh does not match it or
      does not divide the batch or a parameter, or if libtpu is not installed.
  """
  model_dir = paths.absolute(model_dir, 'MODEL_DIR')
  if fit not in (None, 'batch', 'slice'):
    raise ValueError(f"FIT = {fit!r} is not None, 'batch' or 'slice'.")
  run = gin.get_bindings(training.train)
  if fit == 'slice' and -1 not in run['mesh_shape']:
    raise ValueError(
      f"FIT = 'slice' needs -1 in MESH_SHAPE = {run['mesh_shape']}: the axis "
      'that takes the chips of a larger slice.'
    )
  if 'program' in run:
    raise ValueError(
      'A run with a judge on the host (gin/algorithms/oaif.gin) consists of '
      'two programs with the host between them. Compile a run with a judge on '
      'the device (gin/judges) instead.'
    )
  case = search.Case(
    topology,
    num_slices,
    run['mesh_shape'],
    run['batch_size'],
    run['microbatches'],
  )
  kind = step_kinds.of(run['step'])
  print(
    networks.describe(
      run['model'], run['start'], trains_judge=kind.trains_judge
    )
  )
  attempt = functools.partial(compile_case, run, num_completions)
  report, shardings = attempt(case)
  print(report_lib.render(report))
  if print_shardings:
    print(shardings)
  folder = epath.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'shardings.txt').write_text(shardings)
  (folder / 'precompile.txt').write_text(report_lib.render(report))
  _save(folder, report)
  if fit == 'batch':
    report['fit'] = search.largest_batch(case, attempt, report['fits'])
  elif fit == 'slice':
    report['fit'] = search.smallest_slice(case, attempt)
  if fit is not None:
    print(report['fit'])
    _save(folder, report)


def _save(folder: epath.Path, report: Mapping[str, Any]) -> None:
  path = folder / 'precompile.json'
  path.write_text(json.dumps(report, indent=1) + '\n')


def compile_case(
  run: Mapping[str, Any], num_completions: int, case: search.Case
) -> tuple[dict[str, Any], str]:
  """Compiles one configuration.

  Args:
    run: Bindings of `training.train`.
    num_completions: NUM_COMPLETIONS, the K of a data set of rewards.
    case: Configuration to compile.

  Returns:
    The report and the table of shardings.
  """
  print(
    f'Compiling BATCH_SIZE {case.batch_size} for {case.num_slices} x '
    f'{case.topology}. A large step takes several minutes, without a word.',
    flush=True,
  )
  devices = devices_lib.devices(case.topology, case.num_slices)
  mesh = sharding.make_mesh(case.mesh_shape, devices)
  optim.check(case.batch_size, case.microbatches, mesh)
  optimizer = training.make_optimizer(
    run['optimizer'], run['model'], run['watch']
  )
  state = training.abstract_state(mesh, run['model'], optimizer, run['start'])
  frozen = training.abstract_frozen(mesh, run['model'], run['start'])
  batch = abstract_batch(run, case.batch_size, num_completions, mesh)
  whole = optim.accumulate(
    run['step'], parts=case.microbatches, weight=run['part_weight']
  )
  key = jax.eval_shape(jax.random.key, 0)
  key = jax.ShapeDtypeStruct(
    key.shape, key.dtype, sharding=sharding.replicated(mesh)
  )
  wall, cpu = time.time(), time.process_time()
  error, compiled = '', None
  with jax.set_mesh(mesh):
    step = partitioning.jit_update(
      functools.partial(whole, model=run['model'], optimizer=optimizer),
      jax.tree.map(lambda x: x.sharding, state),
    )
    lowered = step.lower(state, frozen, batch, key)
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as raised:
      error = str(raised)
      if not report_lib.is_out_of_memory(error):
        raise
  report = {
    'topology': case.topology,
    'slices': case.num_slices,
    'chips': case.chips,
    'devices': case.devices,
    'mesh': dict(mesh.shape),
    'batch_size': case.batch_size,
    'state_bytes': {
      'policy': sharding.bytes_per_device(state.params),
      'optimizer': sharding.bytes_per_device((state.opt_state, state.players)),
      'reference': sharding.bytes_per_device(frozen.reference),
      'judge': sharding.bytes_per_device(frozen.judge),
    },
    'compile_seconds': round(time.time() - wall, 1),
    'compile_cpu_seconds': round(time.process_time() - cpu, 1),
    'host_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  }
  found = tpu_slices.chip(case.topology).device
  if compiled is None:
    report |= report_lib.does_not_fit(error, report['state_bytes'])
  else:
    report |= report_lib.memory(
      compiled.memory_analysis(), found, report['state_bytes']
    )
    program = hlo.analyse(
      compiled.as_text(), bytes_per_cycle=found.hbm_bandwidth / found.clock
    )
    work = work_of(run, state, batch, mesh)
    report |= report_lib.phases(program, work, found, case.devices)
    report['collectives'] = report_lib.collectives(program)
  return report, sharding.table(state) + sharding.table(frozen)


def abstract_batch(
  run: Mapping[str, Any],
  batch_size: int,
  num_completions: int,
  mesh: jax.sharding.Mesh,
) -> types.Tokens | types.Labelled:
  """Returns the shapes of a batch, according to the features of the task."""
  load = gin.get_bindings(data.load)
  lengths = load['task_feature_lengths']
  array = lambda dtype, *shape: types.as_leaf(
    jax.ShapeDtypeStruct(
      (batch_size, *shape), dtype, sharding=sharding.batch(mesh)
    )
  )
  tokens = lambda *shape: types.Tokens(
    ids=array(jnp.int32, *shape), mask=array(bool, *shape)
  )
  prompts = tokens(lengths['inputs'])
  if load['prompt_format'].template is not None:
    prompts = types.Prompts(
      ids=prompts.ids, mask=prompts.mask, bare=tokens(lengths['inputs'])
    )
  if load.get('prompts_only'):
    return prompts
  task = data.find(load['mixture_or_task_name'], module=load.get('module'))
  features = task.output_features
  k = 1
  if features['targets'].rank == 2:
    k = 2 if 'preference' in features else num_completions
  loss = gin.get_bindings(run['step']).get('loss')
  precomputed = (
    loss is not None
    and bool(needs.of(loss).anchors)
    and run['start'].reference_checkpoint_path is None
  )
  return types.Labelled(
    completions=types.Completions(
      prompts=prompts, completions=tokens(k, lengths['targets'])
    ),
    completion_mask=array(bool, k),
    preference=array(jnp.float32) if 'preference' in features else None,
    rewards=array(jnp.float32, k) if 'rewards' in features else None,
    reference_log_prob=array(jnp.float32, k) if precomputed else None,
  )


def work_of(
  run: Mapping[str, Any],
  state: types.TrainState,
  batch: types.Tokens | types.Labelled,
  mesh: jax.sharding.Mesh,
) -> Mapping[str, roofline.Work]:
  """Returns the minimal work of each phase of the run."""
  kind, start = step_kinds.of(run['step']), run['start']
  bound = gin.get_bindings(run['step'])
  judge = kind.judge(bound) if kind.judge else None
  judge_model = run['model'] if kind.trains_judge else start.judge_model
  if judge is not None and not judges.declaration_of(judge).has_params:
    judge = None
  coefs, sampler = bound.get('mixture_coefs'), bound.get('sampler')
  players = bound.get('players')
  int8 = sampler is not None and sampler.int8
  mixed = kind.samples and min(coefs or (0,)) > 0 and not int8
  return roofline.phases(
    roofline.Run(
      model=run['model'],
      judge_model=judge_model,
      judge=judge,
      batch=batch,
      state_bytes=sharding.bytes_per_device(state),
      mesh=mesh,
      mixture_coefs=coefs,
      max_new_tokens=sampler.max_new_tokens if kind.samples and sampler else 0,
      reads_reference=start.reference_checkpoint_path is not None
      and (not mixed or players is not None and players.second != 'reference'),
      int8_sampling=int8,
    )
  )
