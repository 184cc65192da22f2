"""Micro runs of the embedded task in several processes of this machine.

For the commands `faults.py` and `processes.py`.
"""

import atexit
import collections
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import socket
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = {
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 8,
  'num_encoder_layers': 1,
  'num_decoder_layers': 1,
  'mlp_dim': 16,
}
# One thread, and programs that are compiled quickly.
FLAGS = (
  '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 '
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)
_GLOO = re.compile(r'\[Gloo\]|connected to \d+ peer ranks')
# Processes are forked from a server that has imported these: it takes 8 s.
MODULES = (
  'clu.metric_writers',
  'ipo_md.__main__',
  'ipo_md.algorithms',
  'ipo_md.evaluation.infer',
  'ipo_md.evaluation.side_by_side',
  'ipo_md.training',
  'tasks.mini_tldr.truth',
)


def prepare(root: pathlib.Path) -> None:
  """Makes the new folder of a command, and the environment of its processes."""
  if root.exists():
    sys.exit(f'{root} exists already.')
  (root / 'logs').mkdir(parents=True)
  os.chdir(ROOT)
  sys.path.insert(0, str(ROOT))
  os.environ.update(
    XLA_FLAGS=FLAGS,
    JAX_PLATFORMS='cpu',
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    # Process 0 compiles and the others wait for it, else for one another in
    # their first collective: JAX's on a CPU, Gloo, waits for 30 s alone.
    JAX_SHARE_BINARY_BETWEEN_HOSTS='1',
    PYTHONPATH=str(ROOT),
    TF_CPP_MIN_LOG_LEVEL='3',
  )
  cache = str(root / 'cache' / 'jax')
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', cache)


def arguments(
  model_dir: pathlib.Path, cache: pathlib.Path, files: str, **bindings
) -> list[str]:
  """The command line of a run of t5_tiny, made smaller, on mini_tldr.

  Args:
    model_dir: MODEL_DIR.
    cache: CACHE_DIR.
    files: gin files without folder and ending, run file first.
    **bindings: what else is bound.
  """
  run, *others = files.split()
  files = [f'runs/{run}', 'models/t5_tiny', 'tasks/mini_tldr', *others]
  bindings = {
    'MODEL_DIR': f"'{model_dir}'",
    'CACHE_DIR': f"'{cache}'",
    'data.load.split': "'validation'",
    **{f'models.T5.{name}': size for name, size in SIZES.items()},
  } | bindings
  return [f'--gin_file=gin/{name}.gin' for name in files] + [
    f'--gin.{name}={value}' for name, value in bindings.items()
  ]


def process(
  args: list[str], index: int, count: int, devices: int, port: int, log: str
) -> None:
  """One process of a run; its batches are recorded beside its log."""
  for number, name in ((1, f'{log}.{index}'), (2, f'{log}.{index}.errors')):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
  from absl import app
  import jax
  from jax._src import cache_key

  from ipo_md import __main__ as main
  from ipo_md import data
  from ipo_md.core import gin_config

  jax.config.update('jax_num_cpu_devices', devices // count)
  # On a CPU it differs between processes: only process 0 would find programs.
  cache_key._hash_accelerator_config = cache_key._hash_devices
  prefetch = data.prefetch

  def recorded(make, steps):
    path = f'{log}.{index}.batches'
    for step, batch in zip(steps, prefetch(make, steps), strict=True):
      digests = collections.defaultdict(hashlib.sha256)
      for leaf in jax.tree.leaves(batch):
        for shard in leaf.addressable_shards:
          first = shard.index[0].start or 0
          for row, values in enumerate(shard.data.__array__(), first):
            digests[row].update(values.tobytes())
      rows = {row: digest.hexdigest() for row, digest in digests.items()}
      with open(path, 'a') as file:
        file.write(json.dumps([step, rows]) + '\n')
      yield batch

  data.prefetch = recorded
  if count > 1:
    args = [
      *args,
      f'--coordinator_address=localhost:{port}',
      f'--num_processes={count}',
      f'--process_id={index}',
    ]
  sys.argv = ['ipo_md', *args]
  try:
    app.run(main.main, argv=gin_config.rewrite_gin_args(sys.argv))
  finally:
    atexit._run_exitfuncs()  # a forked process leaves them out


class Run:
  """A run in so many processes, which share so many devices.

  Attributes:
    log: each process writes LOG.INDEX, LOG.INDEX.errors, LOG.INDEX.batches.
    processes: of `multiprocessing`.
  """

  def __init__(
    self, args: list[str], *, count: int, devices: int, log: pathlib.Path
  ):
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(list(MODULES))
    with socket.socket() as probe:
      probe.bind(('localhost', 0))
      port = probe.getsockname()[1]
    self.log = log
    self.processes = [
      context.Process(
        target=process,
        args=(args, i, count, devices, port, str(log)),
        daemon=True,
      )
      for i in range(count)
    ]
    for one in self.processes:
      one.start()

  def wait(self, seconds: float) -> bool:
    """Whether all have ended by then. After a failure the others are killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      codes = self.codes()
      if None not in codes:
        return True
      if any(codes):
        for one in self.processes:
          one.kill()
      time.sleep(0.02)
    return False

  def codes(self) -> list[int | None]:
    """Exit codes; minus the signal that ended it, None if it goes on."""
    return [one.exitcode for one in self.processes]

  def said(self, index: int) -> str:
    """What one process printed, but for the lines of JAX's collectives.

    Of those, which threads print at the same time, one may be within another.
    """
    log = pathlib.Path(f'{self.log}.{index}')
    lines = log.read_text().splitlines() if log.exists() else []
    return '\n'.join(line for line in lines if line and not _GLOO.search(line))

  def all_said(self) -> str:
    """What all of them printed, their errors too, for messages."""
    logs = sorted(self.log.parent.glob(f'{self.log.name}.*'))
    logs = [log for log in logs if log.suffix != '.batches']
    return '\n'.join(f'{log}:\n{log.read_text()[-2000:]}' for log in logs)

  def batches(self) -> list[list[tuple[int, dict[str, str]]]]:
    """Of each process (step, {row: its digest})."""
    found = []
    for i in range(len(self.processes)):
      path = pathlib.Path(f'{self.log}.{i}.batches')
      lines = path.read_text().splitlines() if path.exists() else []
      found.append([tuple(json.loads(line)) for line in lines])
    return found


def check(truth: bool, message: str) -> None:
  if not truth:
    sys.exit(f'FAILED: {message}')


def finished(args: list[str], **layout) -> Run:
  """A run that is waited for and has to end well."""
  run = Run(args, **layout)
  ended = run.wait(600)
  check(ended and not any(run.codes()), run.all_said())
  return run


def state(model_dir: pathlib.Path, step: int) -> dict:
  """The arrays of a checkpoint, by name."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  path = model_dir / 'checkpoints' / str(step) / 'default'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    tree = reader.metadata(path).item_metadata.tree
    as_numpy = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)
    found = reader.restore(
      path, ocp.args.PyTreeRestore(restore_args=jax.tree.map(as_numpy, tree))
    )
  return {
    jax.tree_util.keystr(key): np.asarray(value)
    for key, value in jax.tree_util.tree_leaves_with_path(found)
  }
