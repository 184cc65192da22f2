"""Starts micro runs of the embedded task in several local processes.

The commands faults.py and processes.py use it.
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
# One thread, and programs that compile quickly.
FLAGS = (
  '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 '
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)
_GLOO = re.compile(r'\[Gloo\]|connected to \d+ peer ranks')
# Processes are forked from a server that has imported these, which takes 8 s.
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
  """Creates the folder of a command and sets its processes' environment."""
  if root.exists():
    sys.exit(f'{root} exists already.')
  (root / 'logs').mkdir(parents=True)
  os.chdir(ROOT)
  sys.path.insert(0, str(ROOT))
  os.environ.update(
    XLA_FLAGS=FLAGS,
    JAX_PLATFORMS='cpu',
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    # Process 0 compiles and the others wait for it. Otherwise they would wait
    # for one another in their first collective, which Gloo limits to 30 s.
    JAX_SHARE_BINARY_BETWEEN_HOSTS='1',
    PYTHONPATH=str(ROOT),
    TF_CPP_MIN_LOG_LEVEL='3',
  )
  cache = str(root / 'cache' / 'jax')
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', cache)


def arguments(
  model_dir: pathlib.Path, cache: pathlib.Path, files: str, **bindings
) -> list[str]:
  """Returns the command line of a small run of t5_tiny on mini_tldr.

  Args:
    model_dir: MODEL_DIR of the run.
    cache: CACHE_DIR of the run.
    files: Gin files without folder and suffix, first the run file.
    **bindings: Further bindings.
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
  """Runs one process, and records its batches beside its log.

  Args:
    args: Command line of the run.
    index: Number of this process.
    count: Number of processes.
    devices: Number of devices that they share.
    port: Port of the coordinator.
    log: Path that all names of logs begin with.
  """
  for number, name in ((1, f'{log}.{index}'), (2, f'{log}.{index}.errors')):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
  from absl import app
  import jax
  from jax._src import cache_key

  from ipo_md import __main__ as main
  from ipo_md import data
  from ipo_md.core import gin_config

  jax.config.update('jax_num_cpu_devices', devices // count)
  # On a CPU this hash differs between processes, so only process 0 would find
  # compiled programs.
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
    atexit._run_exitfuncs()  # A forked process does not call them.


class Run:
  """A run in `count` processes that share `devices` devices.

  Attributes:
    log: Path from which each process makes the names LOG.INDEX,
      LOG.INDEX.errors and LOG.INDEX.batches.
    processes: Processes of `multiprocessing`.
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
    """Waits, and returns whether all processes have ended by then.

    If one process fails, the others are killed.
    """
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
    """Returns the exit code of each process.

    It is minus the signal that ended the process, or None if it is running.
    """
    return [one.exitcode for one in self.processes]

  def said(self, index: int) -> str:
    """Returns what a process printed, without the lines of JAX's collectives.

    Threads print those lines at the same time, so one may be inside another.
    """
    log = pathlib.Path(f'{self.log}.{index}')
    lines = log.read_text().splitlines() if log.exists() else []
    return '\n'.join(line for line in lines if line and not _GLOO.search(line))

  def all_said(self) -> str:
    """Returns what all processes printed, with errors, for messages."""
    logs = sorted(self.log.parent.glob(f'{self.log.name}.*'))
    logs = [log for log in logs if log.suffix != '.batches']
    return '\n'.join(f'{log}:\n{log.read_text()[-2000:]}' for log in logs)

  def batches(self) -> list[list[tuple[int, dict[str, str]]]]:
    """Returns for each process a list of (step, {row: digest})."""
    found = []
    for i in range(len(self.processes)):
      path = pathlib.Path(f'{self.log}.{i}.batches')
      lines = path.read_text().splitlines() if path.exists() else []
      found.append([tuple(json.loads(line)) for line in lines])
    return found


def check(truth: bool, message: str) -> None:
  """Ends the command with a message unless `truth` holds."""
  if not truth:
    sys.exit(f'FAILED: {message}')


def finished(args: list[str], **layout) -> Run:
  """Runs to the end; a failure ends the command."""
  run = Run(args, **layout)
  ended = run.wait(600)
  check(ended and not any(run.codes()), run.all_said())
  return run


def state(model_dir: pathlib.Path, step: int) -> dict:
  """Returns the arrays of a checkpoint, by name."""
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
