"""Eight virtual devices, and compiled programs kept between tests and runs.

XLA's backend optimises little here: most of the time of these tests is
compilation, and that takes a third off it.
"""

import gc
import os
import pathlib
import signal

# A shell starts what runs in the background with SIGINT ignored, and so would
# be the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
  ]
)
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path(__file__).parent.parent / '.pytest_cache' / 'jax'),
)
# Tests that call a function without jax.jit compile hundreds of tiny programs.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

# Tracing makes millions of small objects. Looking for cycles among them, and
# among those of the imported packages, took a quarter of its time.
gc.set_threshold(100_000, 20, 50)


def pytest_collection_finish():
  gc.collect()
  gc.freeze()
