"""Tests of compilation for TPU slices; most need libtpu."""

import importlib.util
import json
import pathlib
import types

import gin
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import pytest

from ipo_md.core import gin_config
from ipo_md.core import partitioning
from ipo_md.core import sharding
from ipo_md.core import tpu_slices
from ipo_md.tpu import devices
from ipo_md.tpu import report as report_lib
from ipo_md.tpu import search

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parents[2]
FILES = [
  f'gin/{name}.gin'
  for name in (
    'runs/online',
    'models/t5_tiny',
    'tasks/mini_tldr',
    'judges/likelihood',
    'algorithms/ipo',
    'runs/precompile',
  )
]
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="libtpu is not installed: pip install -e '.[tpu]'",
)


@pytest.fixture(name='call')
def call_fixture(tmp_path):
  """Runs the command with changed bindings and without compilation cache."""
  jax.config.update('jax_enable_compilation_cache', False)
  jax.clear_caches()

  def call(**changes):
    bindings = {
      'MODEL_DIR': f"'{tmp_path}'",
      'TOPOLOGY': "'v5e:2x2'",
      'BATCH_SIZE': 8,
      'TASK_FEATURE_LENGTHS': "{'inputs': 8, 'targets': 4}",
      'MAX_NEW_TOKENS': 4,
      'models.T5.scan': True,
      'models.T5.num_encoder_layers': 1,
      'models.T5.num_decoder_layers': 3,
    } | changes
    gin.clear_config()
    gin.add_config_file_search_path(str(_ROOT))
    gin_config.parse(FILES, [f'{k} = {v}' for k, v in bindings.items()])
    gin.query_parameter('RUN/gin.macro.value').scoped_configurable_fn()
    return json.loads((tmp_path / 'precompile.json').read_text())

  yield call
  gin.clear_config()
  jax.config.update('jax_enable_compilation_cache', True)


@needs_libtpu
def test_a_step_is_compiled_for_a_slice(call, tmp_path, capsys):
  report = call(PRINT_SHARDINGS=True)
  assert report['fits']
  assert report['chips'] == 4
  assert report['mesh'] == {'data': 1, 'fsdp': 4, 'tensor': 1, 'expert': 1}
  hbm = report['hbm_bytes']
  assert hbm['arguments'] >= sum(report['state_bytes'].values())
  assert hbm['arguments'] + hbm['temporaries'] <= hbm['peak'] < hbm['chip']
  for name in ('encode', 'decode', 'judge', 'log_probs', 'backward', 'update'):
    assert report['phases'][name]['cycles'] > 0, name
  assert report['decode']['tokens'] == 4
  decode = report['phases']['decode']['cycles']
  assert 0 < 4 * report['decode']['cycles_per_token'] <= decode
  # Weights are gathered before the loop, so that no token waits for them.
  in_loop = [c for c in report['collectives'] if c['in_decode_loop']]
  assert all(c['largest'] < 1024 for c in in_loop), in_loop
  assert any(c['kind'] == 'all-gather' for c in report['collectives'])
  received = sum(
    c['bytes'] for c in report['collectives'] if c['phase'] == 'judge'
  )
  network = report['phases']['judge']['network_seconds']
  assert network == pytest.approx(
    received / tpu_slices.CHIPS['v5e'].ici_bandwidth
  )
  printed = capsys.readouterr().out
  assert 'FITS' in printed
  table = (tmp_path / 'shardings.txt').read_text()
  assert table in printed
  line = next(
    x for x in table.splitlines() if x.startswith('reference/token_embedder')
  )
  assert line.split('  ')[1:] == [] or '(320, 64)' in line
  assert "(None, 'fsdp')" in line
  assert f'{320 * 64 * 4 // 4:,}' in line


@needs_libtpu
def test_weights_are_gathered_rather_than_sent_around():
  mesh = sharding.make_mesh((1, 8, 1), devices.devices('v5e:2x4', 1))
  split = NamedSharding(mesh, PartitionSpec('fsdp'))
  array = lambda *shape: jax.ShapeDtypeStruct(
    shape, jnp.bfloat16, sharding=split
  )
  with jax.set_mesh(mesh):
    update = partitioning.jit_update(lambda w, x: (w, x @ w), split)
    lowered = update.lower(array(1024, 1024), array(65536, 1024))
    program = lowered.compile().as_text()
  assert 'all-gather' in program
  assert 'collective-permute' not in program


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'TOPOLOGY': "'v5e:3x3'"}, 'no slice'),
    ({'MESH_SHAPE': (1, 3, 1)}, r'multiplies to 3 .* the 4 devices'),
    ({'BATCH_SIZE': 6}, 'BATCH_SIZE 6 .* by 4: data x fsdp'),
    ({'BATCH_SIZE': 0}, 'BATCH_SIZE = 0.* whole number of at least 1'),
    ({'FIT': "'slice'", 'MESH_SHAPE': (1, 4, 1)}, 'needs -1 in MESH_SHAPE'),
    ({'FIT': "'model'"}, "FIT = 'model'"),
    (
      {'MESH_SHAPE': (1, 1, 4), 'models.T5.mlp_dim': 126},
      "'mlp' of size 126 is not divisible by mesh axis 'tensor' of size 4",
    ),
  ],
)
@needs_libtpu
def test_what_does_not_go_together_is_said_before_compiling(
  call, changes, message
):
  with pytest.raises(ValueError, match=message):
    call(**changes)


def test_a_compiled_program_fits_only_with_its_arguments():
  """The compiler itself only refuses temporaries that are too large."""
  chip = tpu_slices.chip('v5e:2x4')
  state = {'policy': 2 * 2**30, 'judge': 2**30}
  stats = types.SimpleNamespace(
    argument_size_in_bytes=3 * 2**30,
    output_size_in_bytes=2 * 2**30,
    alias_size_in_bytes=2 * 2**30,
    temp_size_in_bytes=13 * 2**30,
    generated_code_size_in_bytes=0,
  )
  assert report_lib.memory(stats, chip, state)['fits']
  stats.temp_size_in_bytes += 2**30
  report = report_lib.memory(stats, chip, state)
  assert not report['fits']
  assert report['exceeds_by'] == 2**30
  assert any('BATCH_SIZE' in advice for advice in report['would_help'])


def test_what_does_not_fit_says_by_how_much_and_what_would_help():
  state = {'policy': 1 << 30, 'optimizer': 0, 'reference': 0, 'judge': 6 << 30}
  error = (
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 31.25G of '
    '15.75G hbm. Exceeded hbm capacity by 15.50G.'
  )
  report = report_lib.does_not_fit(error, state)
  assert report['exceeds_by'] == 15.5 * 2**30
  other = (
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
    'for HLO temporaries (24.25G) exceeds available HBM (15.75G).'
  )
  assert report_lib.is_out_of_memory(other)
  assert report_lib.does_not_fit(other, state) == report
  assert not report_lib.is_out_of_memory('INTERNAL: hbm')
  advice = ' '.join(report['would_help'])
  assert 'BATCH_SIZE' in advice and 'REMAT_POLICY' in advice
  state['judge'] = 30 << 30
  advice = report_lib.does_not_fit(error, state)['would_help']
  assert 'judge alone takes 30.00 GiB' in advice[0]


@pytest.mark.parametrize('largest', [1, 7, 8, 40, 200])
def test_the_largest_batch_is_found(largest):
  """The first guess does not matter; sizes are multiples of data x fsdp."""

  def attempt(case):
    return {'fits': case.batch_size <= largest}, ''

  for first in (4, 16, 64):
    case = search.Case('v5e:2x2', 1, (1, -1, 1), first)
    found = search.largest_batch(case, attempt, first <= largest)
    expected = min(largest // 4 * 4, 64 * first) or None
    assert found['largest_batch_size'] == expected
    assert found['is_limit'] == (largest < 128 * first)


def test_the_smallest_slice_is_found():
  def attempt(case):
    if case.chips == 8:
      raise ValueError('the mesh does not divide it')
    return {'fits': case.chips >= 64}, ''

  case = search.Case('v5e:4x4', 1, (1, -1, 1), 8)
  found = search.smallest_slice(case, attempt)
  assert found['smallest_slice'] == 'v5e:8x8'
  assert found['tried']['v5e:2x4'] == 'the mesh does not divide it'


@needs_libtpu
@pytest.mark.parametrize(
  ('slice_', 'devices_'), [('v5e:1x1', 1), ('v5e:2x2', 4), ('tpu7x:2x2x1', 8)]
)
def test_a_program_for_a_tpu_knows_that_it_is(slice_, devices_):
  mesh = sharding.make_mesh((1, devices_, 1), devices.devices(slice_, 1))
  assert not partitioning.on_tpu()
  with jax.set_mesh(mesh):
    traced = []
    jax.eval_shape(lambda: traced.append(partitioning.on_tpu()))
    jax.eval_shape(lambda: traced.append(partitioning.on_one_cpu()))
  assert traced == [True, False]
