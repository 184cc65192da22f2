"""Reads cycles and collectives by phase from a compiled TPU program.

The compiler writes its own estimate of cycles beside each instruction. An
estimate in the body of a loop counts once per iteration, which gives an upper
limit for a loop that may end early, like the sampling loop. The phase of an
instruction is its innermost `jax.named_scope` among `PHASES`; instructions that
JAX transposed belong to the phase 'backward'.

The estimates do not include waits for data that is fetched from HBM while other
instructions run. This module adds those waits: it assumes that fetches follow
one another in program order, each at the full bandwidth.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
import re

PHASES = ('encode', 'decode', 'judge', 'log_probs', 'backward', 'update')
OTHER = 'other'

_ITEM_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 'f64': 8}
_COLLECTIVES = (
  *('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'),
  *('reduce-scatter', 'ragged-all-to-all', 'collective-broadcast'),
)
_SCOPE = re.compile(rf'\b({"|".join(PHASES)})\b')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_INSTRUCTION = re.compile(
  r'^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = '
  r'(?P<type>\(.*?\)|\S+) (?P<opcode>[a-z][a-z0-9-]*)\('
)
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r'\b(body|condition|calls|to_apply)=%?([\w.-]+)')
_BRANCHES = re.compile(
  r'(?:branch_computations=\{([^}]*)\}'
  r'|true_computation=(%?[\w.-]+), false_computation=(%?[\w.-]+))'
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of the program.

  Attributes:
    kind: Operation, such as 'all-gather'.
    shapes: Shapes of the results on one chip.
    bytes: Size of the results on one chip.
    times: Number of executions in a step.
    phase: Phase of the step.
    in_loop: Whether it runs once for each sampled token.
  """

  kind: str
  shapes: tuple[tuple[int, ...], ...]
  bytes: int
  times: int
  phase: str
  in_loop: bool


@dataclasses.dataclass(frozen=True)
class Program:
  """What one chip does in one step.

  Attributes:
    cycles: Estimated cycles by phase.
    waits: Cycles spent waiting for fetches from HBM, by phase.
    token_cycles: Cycles of one iteration of the sampling loop; 0 without one.
    token_waits: Waiting cycles of one iteration.
    tokens: Largest number of iterations of the sampling loop.
    kernels: Number of executions of custom kernels, which have no estimate.
    collectives: All collective operations.
  """

  cycles: Mapping[str, int]
  waits: Mapping[str, int]
  token_cycles: int
  token_waits: int
  tokens: int
  kernels: int
  collectives: Sequence[Collective]


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  opcode: str
  line: str

  @property
  def called(self) -> dict[str, str]:
    """The computations that it calls, by attribute."""
    return dict(_CALLED.findall(self.line))


class _Found:
  """Totals of a walk through computations."""

  def __init__(self):
    self.cycles: dict[str, int] = dict.fromkeys((*PHASES, OTHER), 0)
    self.waits: dict[str, int] = dict.fromkeys((*PHASES, OTHER), 0)
    self.kernels = 0
    self.collectives: list[Collective] = []
    # (cycles per iteration, waits per iteration, iterations) of decode loops
    self.loops: list[tuple[int, int, int]] = []

  def add(self, other: '_Found') -> None:
    for phase, cycles in other.cycles.items():
      self.cycles[phase] += cycles
    for phase, cycles in other.waits.items():
      self.waits[phase] += cycles
    self.kernels += other.kernels
    self.collectives += other.collectives
    self.loops += other.loops

  @property
  def total(self) -> int:
    return sum(self.cycles.values())


def analyse(text: str, *, bytes_per_cycle: float) -> Program:
  """Analyses a compiled TPU program.

  Args:
    text: Program text, from `jax.stages.Compiled.as_text()`.
    bytes_per_cycle: HBM bandwidth of the chip, in bytes per cycle.
  """
  computations, entry = _computations(text)
  walk = functools.partial(_walk, computations, bytes_per_cycle=bytes_per_cycle)
  found = walk(entry, times=1, phase=OTHER, in_loop=False)
  cycles, waits, tokens = max(
    found.loops, default=(0, 0, 0), key=lambda x: x[0] * x[2]
  )
  return Program(
    found.cycles,
    found.waits,
    token_cycles=cycles,
    token_waits=waits,
    tokens=tokens,
    kernels=found.kernels,
    collectives=found.collectives,
  )


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """Parses the computations by name, and the name of the entry."""
  computations, entry, current = {}, '', None
  for line in text.splitlines():
    if line[:1].isspace():
      match = _INSTRUCTION.match(line)
      if match and current is not None:
        current.append(_Instruction(**match.groupdict(), line=line))
    elif match := _HEAD.match(line):
      current = computations[match[2]] = []
      entry = match[2] if match[1] else entry
  return computations, entry


def _walk(
  computations: Mapping[str, list[_Instruction]],
  name: str,
  *,
  times: int,
  phase: str,
  in_loop: bool,
  bytes_per_cycle: float,
) -> _Found:
  """Adds up what a computation does when it runs `times` times."""
  walk = functools.partial(_walk, computations, bytes_per_cycle=bytes_per_cycle)
  found = _Found()
  arrivals, arrival, waited = {}, 0.0, 0  # fetches from HBM, in cycles
  for instruction in computations[name]:
    here = _phase(instruction.line) or phase
    now = found.total / times + waited
    if instruction.opcode in ('copy-start', 'slice-start'):
      fetched = min(size for size, _ in _arrays(instruction.type)[:2])
      arrival = max(arrival, now) + fetched / bytes_per_cycle
      arrivals[instruction.name] = arrival
    elif instruction.opcode in ('copy-done', 'slice-done'):
      start = _group(r'-done\(.*?([\w.-]+)\)', instruction.line)
      wait = max(0, round(arrivals[start] - now))
      found.waits[phase] += wait * times
      waited += wait
    if cycles := _CYCLES.search(instruction.line):
      found.cycles[here] += int(cycles[1]) * times
    elif 'custom_call_target="tpu_custom_call"' in instruction.line:
      found.kernels += times
    kind = instruction.opcode.removesuffix('-start')
    # A collective that overlaps with other work appears in every fusion that
    # it overlaps with. Only the one that starts it counts.
    if kind in _COLLECTIVES and not name.startswith('async_collective_fusion'):
      found.collectives.append(
        _collective(kind, instruction, times, here, in_loop)
      )
    if instruction.opcode == 'while':
      rounds = _rounds(computations[instruction.called['condition']])
      sampling = here == 'decode' and not in_loop
      inner = walk(
        instruction.called['body'],
        times=times * rounds,
        phase=here,
        in_loop=in_loop or sampling,
      )
      if sampling:
        every = times * rounds
        waits = sum(inner.waits.values())
        found.loops.append((inner.total // every, waits // every, rounds))
      found.add(inner)
    elif branches := _BRANCHES.search(instruction.line):
      # Only one branch runs; the longest one counts.
      inner = [
        walk(b, times=times, phase=here, in_loop=in_loop)
        for b in re.findall(r'[\w.-]+', ' '.join(branches.groups('')))
      ]
      found.add(max(inner, key=lambda f: f.total))
    else:
      for called in _inner(instruction, computations):
        inner = walk(called, times=times, phase=here, in_loop=in_loop)
        if instruction.opcode == 'fusion':  # its own estimate counts
          inner.cycles.clear()
        found.add(inner)
  return found


def _inner(instruction: _Instruction, computations: Mapping) -> Iterator[str]:
  """Yields the computations that run in an instruction, except reducers."""
  if instruction.opcode in ('fusion', 'call', 'async-start', 'custom-call'):
    for attribute in ('calls', 'to_apply'):
      called = instruction.called.get(attribute)
      if called is not None and called in computations:
        yield called


def _phase(line: str) -> str | None:
  """Returns the phase that an instruction's metadata names, if any."""
  match = _OP_NAME.search(line)
  if not match:
    return None
  if 'transpose(' in match[1]:
    return 'backward'
  scopes = _SCOPE.findall(match[1])
  return scopes[-1] if scopes else None


def _group(pattern: str, line: str) -> str:
  """Returns the first group of a pattern, which every such line matches."""
  match = re.search(pattern, line)
  if match is None:
    raise ValueError(f'{pattern!r} is not in the instruction {line!r}.')
  return match[1]


def _rounds(condition: Sequence[_Instruction]) -> int:
  """Returns the constant that limits the loop's counter, or 1 without one."""
  constants = {}
  for instruction in condition:
    if value := re.search(r' constant\((\d+)\)', instruction.line):
      constants[instruction.name] = int(value[1])
  for instruction in condition:
    if instruction.opcode == 'compare' and 'direction=LT' in instruction.line:
      operands = _group(r' compare\(([^)]*)\)', instruction.line)
      for operand in re.findall(r'[\w.-]+', operands):
        if operand in constants:
          return constants[operand]
  return 1


def _collective(
  kind: str, instruction: _Instruction, times: int, phase: str, in_loop: bool
) -> Collective:
  arrays = _arrays(instruction.type)
  if instruction.opcode.endswith('-start'):  # lists operands and contexts too
    arrays = [max(arrays)]
  return Collective(
    kind=kind,
    shapes=tuple(shape for _, shape in arrays),
    bytes=sum(size for size, _ in arrays),
    times=times,
    phase=phase,
    in_loop=in_loop,
  )


def _arrays(text: str) -> list[tuple[int, tuple[int, ...]]]:
  """Returns the bytes and shapes of the arrays in an HLO type."""
  arrays = []
  for dtype, shape in _ARRAY.findall(text):
    shape = tuple(map(int, filter(None, shape.split(','))))
    arrays.append((math.prod(shape) * _ITEM_BYTES.get(dtype, 4), shape))
  return arrays
