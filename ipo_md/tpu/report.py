"""Reports what a compiled TPU program needs and does, as data and as text."""

from collections.abc import Mapping
import re
from typing import Any

from ipo_md.core import tpu_slices
from ipo_md.tpu import hlo
from ipo_md.tpu import roofline

# The compiler's messages for a program that does not fit. The second one
# appears if the temporaries alone are too large.
_ALL = r'Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm'
_TEMPORARIES = (
  r'temporaries \(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)'
)


def is_out_of_memory(error: str) -> bool:
  """Whether the compiler's error says that a program does not fit."""
  return bool(re.search(_ALL, error) or re.search(_TEMPORARIES, error))


def memory(
  stats: Any, chip: tpu_slices.Chip, state: Mapping[str, int]
) -> dict[str, Any]:
  """Compares the peak memory of a program with the HBM of a chip.

  The compiler accepts a program whose temporaries alone fit, so a compiled
  program need not fit.

  Args:
    stats: Result of `jax.stages.Compiled.memory_analysis()`.
    chip: Chip that the program was compiled for.
    state: Bytes per chip of policy, optimizer, reference and judge.

  Returns:
    Entries of the report: fits, hbm_bytes and, if it does not fit, exceeds_by
    and would_help.
  """
  peak = (
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
    + stats.temp_size_in_bytes
    + stats.generated_code_size_in_bytes
  )
  sizes = {
    'arguments': stats.argument_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
    'outputs': stats.output_size_in_bytes - stats.alias_size_in_bytes,
    'program': stats.generated_code_size_in_bytes,
    'peak': peak,
    'chip': chip.hbm_bytes,
  }
  if peak > chip.hbm_bytes:
    return _too_large(sizes, state)
  return {'fits': True, 'hbm_bytes': sizes}


def does_not_fit(error: str, state: Mapping[str, int]) -> dict[str, Any]:
  """Reads the sizes from the compiler's out-of-memory error.

  Args:
    error: Message for which `is_out_of_memory` holds.
    state: Bytes per chip of policy, optimizer, reference and judge.

  Returns:
    The same entries of the report as `memory`.
  """
  sizes = re.search(_TEMPORARIES, error) or re.search(_ALL, error)
  if sizes is None:
    raise ValueError(f'The error names no sizes: {error}')
  used, limit = (_bytes(size) for size in sizes.groups())
  arguments = sum(state.values())
  if re.search(_TEMPORARIES, error):
    used += arguments
  return _too_large(
    {'arguments': arguments, 'peak': used, 'chip': limit}, state
  )


def _too_large(
  sizes: Mapping[str, int], state: Mapping[str, int]
) -> dict[str, Any]:
  """Says by how much a program exceeds the memory, and what would help."""
  arguments, used, limit = (sizes[k] for k in ('arguments', 'peak', 'chip'))
  largest = max(state, key=lambda name: state[name])
  advice = []
  if arguments > limit / 2:
    advice.append(
      f'more chips on fsdp or tensor (MESH_SHAPE, TOPOLOGY): {largest} alone '
      f'takes {state[largest] / 2**30:.2f} GiB a chip, and gin/lora.gin trains '
      'without a second copy of the weights'
    )
  if used - arguments > limit / 2:
    advice += [
      'a smaller BATCH_SIZE, or more MICROBATCHES',
      "REMAT_POLICY = 'full' (or 'minimal')",
      'a tensor axis (MESH_SHAPE), which splits the weights that sampling '
      'gathers',
    ]
  return {
    'fits': False,
    'hbm_bytes': dict(sizes),
    'exceeds_by': used - limit,
    'would_help': advice or ["the next larger slice (FIT = 'slice')"],
  }


def _bytes(text: str) -> int:
  unit = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}.get(text[-1], 1)
  return int(float(text.rstrip('KMGT')) * unit)


def phases(
  program: hlo.Program,
  work: Mapping[str, roofline.Work],
  chip: tpu_slices.Chip,
  number: int,
) -> dict[str, Any]:
  """Compares the cycles of each phase with its lower bound.

  The compiler does not estimate collectives. `network_seconds` is the time in
  which the neighbours of a chip send it the results of the collectives at the
  full bandwidth; some or all of it may overlap with computation.

  Args:
    program: The analysed program.
    work: Minimal work of each phase.
    chip: Chip that the program was compiled for.
    number: Number of chips.
  """
  received = dict.fromkeys(program.cycles, 0)
  for c in program.collectives:
    received[c.phase] += c.bytes * c.times
  rows = {}
  for name, computing in program.cycles.items():
    cycles = computing + program.waits[name]
    needed = work.get(name, roofline.Work())
    bound = needed.seconds(chip, number) * chip.clock
    rows[name] = {
      'cycles': cycles,
      'waiting_cycles': program.waits[name],
      'seconds': cycles / chip.clock,
      'network_seconds': received[name] / chip.ici_bandwidth,
      'model_flops': needed.flops,
      'bytes_per_chip': needed.bytes,
      'bound_cycles': bound,
      'over_bound': cycles / bound if bound else None,
    }
  total = sum(row['cycles'] for row in rows.values())
  flops = sum(w.flops for w in work.values())
  seconds = total / chip.clock
  out = {
    'phases': rows,
    'cycles': total,
    'step_seconds': seconds,
    'kernels_without_estimate': program.kernels,
    'network_seconds': sum(row['network_seconds'] for row in rows.values()),
    'model_flops': flops,
    'utilisation': flops / number / chip.flops / seconds,
  }
  if program.tokens:
    bound = rows['decode']['bound_cycles'] / program.tokens
    out['decode'] = {
      'tokens': program.tokens,
      'cycles_per_token': program.token_cycles + program.token_waits,
      'waiting_cycles_per_token': program.token_waits,
      'bound_cycles_per_token': bound,
      'over_bound': (program.token_cycles + program.token_waits) / bound,
    }
  return out


def collectives(program: hlo.Program) -> list[dict[str, Any]]:
  """Sums collectives by kind, phase and whether they run for each token."""
  sums = {}
  for c in program.collectives:
    row = sums.setdefault(
      (c.kind, c.phase, c.in_loop), {'times': 0, 'bytes': 0, 'largest': 0}
    )
    row['times'] += c.times
    row['bytes'] += c.bytes * c.times
    row['largest'] = max(row['largest'], c.bytes)
  rows = [
    {'kind': kind, 'phase': phase, 'in_decode_loop': in_loop} | row
    for (kind, phase, in_loop), row in sums.items()
  ]
  return sorted(rows, key=lambda row: (-row['in_decode_loop'], -row['bytes']))


def render(report: Mapping[str, Any]) -> str:
  """Renders the report as text."""
  gib = lambda size: f'{size / 2**30:.2f} GiB'
  mesh = ' x '.join(f'{k} {v}' for k, v in report['mesh'].items())
  chips = f'{report["chips"]} chips'
  if report['devices'] > report['chips']:
    chips += f' of {report["devices"]} devices, each a chip in what follows'
  lines = [
    f'{report["slices"]} x {report["topology"]}, {chips}, mesh {mesh}, '
    f'BATCH_SIZE {report["batch_size"]}',
    'HBM per chip: '
    + ', '.join(f'{k} {gib(v)}' for k, v in report['hbm_bytes'].items()),
    'arguments: '
    + ', '.join(f'{k} {gib(v)}' for k, v in report['state_bytes'].items()),
    f'compiled in {report["compile_cpu_seconds"]:.0f} CPU-s '
    f'({report["compile_seconds"]:.0f} s), host memory '
    f'{gib(report["host_bytes"])}',
  ]
  if not report['fits']:
    lines.append(
      f'DOES NOT FIT, by {gib(report["exceeds_by"])}. These would help:'
    )
    lines += [f'  {advice}' for advice in report['would_help']]
    return '\n'.join(lines) + '\n'
  lines.append(
    "FITS. Cycles are the compiler's estimates, bounds are computed by hand:"
  )
  row = '  {:10} {:>15} {:>8} {:>10} {:>12} {:>15} {:>7}'.format
  titles = ('phase', 'cycles', 'ms', 'network ms', 'model TFLOP', 'bound')
  lines.append(row(*titles, 'ratio'))
  for name, phase in report['phases'].items():
    bound, ratio = phase['bound_cycles'], phase['over_bound']
    lines.append(
      row(
        name,
        f'{phase["cycles"]:,}',
        f'{1e3 * phase["seconds"]:.1f}',
        f'{1e3 * phase["network_seconds"]:.1f}',
        f'{phase["model_flops"] / 1e12:.2f}',
        f'{bound:,.0f}' if bound else '',
        f'{ratio:.2f}' if ratio else '',
      )
    )
  lines.append(
    f'step: {1e3 * report["step_seconds"]:.0f} ms without waits for the '
    f'network, which takes at least {1e3 * report["network_seconds"]:.0f} ms, '
    'some of it in parallel; '
    f'{report["model_flops"] / 1e12:.1f} model TFLOP, '
    f'{100 * report["utilisation"]:.1f} % of the matmul rate'
  )
  if decode := report.get('decode'):
    lines.append(
      f'decode: {decode["cycles_per_token"]:,} cycles per token, bound '
      f'{decode["bound_cycles_per_token"]:,.0f}, ratio '
      f'{decode["over_bound"]:.2f}; {decode["tokens"]} tokens'
    )
  if kernels := report['kernels_without_estimate']:
    lines.append(
      f'The compiler has no estimate for {kernels:,} runs of kernels (such as '
      'the products of experts): these figures do not include their time.'
    )
  lines.append('collectives, bytes per chip and step:')
  for c in report['collectives']:
    where = 'decode loop' if c['in_decode_loop'] else c['phase']
    lines.append(
      f'  {c["kind"]:20} {where:12} {c["times"]:>7,} times '
      f'{c["bytes"] / 2**20:>10,.1f} MiB, largest {c["largest"] / 2**20:,.2f}'
    )
  return '\n'.join(lines) + '\n'
