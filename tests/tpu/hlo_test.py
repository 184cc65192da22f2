"""Tests of the analysis on a program written by hand."""

from ipo_md.tpu import hlo

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0:T(128)} add(%p, %p), backend_config={"window_config":{"estimated_cycles":"9999"}}
}

%layer_body (p: (s32[], bf16[2,4])) -> (s32[], bf16[2,4]) {
  %p = (s32[]{:T(128)}, bf16[2,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %f = f32[8]{0:T(128)} fusion(%p), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp(log_probs)/decode/while/body/while/body/dot"}, backend_config={"window_config":{"estimated_cycles":"10"}}
  ROOT %t = (s32[]{:T(128)}, bf16[2,4]{1,0}) tuple(%p, %f)
}

%async_collective_fusion.3 (p: bf16[2,4]) -> bf16[16,4] {
  %beside = f32[8]{0:T(128)} add(%p, %p)
  ROOT %g = bf16[16,4]{1,0:T(8,128)(2,1)} all-gather(%p), frontend_attributes={chain_id="2"}, dimensions={0}, metadata={op_name="jit(step)/jvp(log_probs)/encode/take"}
}

%start_of_it (p: bf16[2,4]) -> bf16[16,4] {
  ROOT %g = bf16[16,4]{1,0:T(8,128)(2,1)} all-gather(%p), frontend_attributes={chain_id="2"}, dimensions={0}, metadata={op_name="jit(step)/jvp(log_probs)/encode/take"}
}

%layer_condition (p: (s32[], bf16[2,4])) -> pred[] {
  %c = s32[]{:T(128)} constant(3)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

%token_body (p: (s32[], bf16[2,4])) -> (s32[], bf16[2,4]) {
  %p = (s32[], bf16[2,4]{1,0}) parameter(0)
  %copy-start.1 = (bf16[64,4]{1,0:T(8,128)(2,1)S(1)}, bf16[64,4]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%p)
  %slice-start.2 = ((bf16[64,4]{1,0:T(8,128)(2,1)}), bf16[16,4]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:16], [0:4]}
  %w = (s32[], bf16[2,4]{1,0}) while(%p), condition=%layer_condition, body=%layer_body, metadata={op_name="jit(step)/jvp(log_probs)/decode/while/body/while"}
  %g = bf16[16,4]{1,0:T(8,128)(2,1)} all-gather(%w), dimensions={0}, metadata={op_name="jit(step)/jvp(log_probs)/decode/while/body/gather"}
  %n = bf16[16,4]{1,0:T(8,128)(2,1)} fusion(%p), kind=kOutput, calls=%async_collective_fusion.3
  %k = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", operand_layout_constraints={f32[8]{0}}
  %copy-done.1 = bf16[64,4]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %slice-done.2 = bf16[16,4]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start.2)
  ROOT %d = f32[8]{0} fusion(%w), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp(log_probs)/decode/while/body/draw"}, backend_config={"window_config":{"estimated_cycles":"5"}}
}

%token_condition (p: (s32[], bf16[2,4])) -> pred[] {
  %n = s32[]{:T(128)} constant(7)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
  ROOT %and = pred[] and(%lt, %i)
}

%short (p: f32[8]) -> f32[8] {
  ROOT %s = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"1"}}
}

%long (p: f32[8]) -> f32[8] {
  ROOT %s = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"50"}}
}

ENTRY %main (a: bf16[2,4]) -> f32[8] {
  %a = bf16[2,4]{1,0} parameter(0)
  %async-collective-start.2 = bf16[16,4]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%start_of_it
  %loop = (s32[], bf16[2,4]{1,0}) while(%a), condition=%token_condition, body=%token_body, metadata={op_name="jit(step)/jvp(log_probs)/decode/while"}
  %r = (bf16[4,4]{1,0}, f32[2,2]{1,0}) all-reduce(%a, %a), metadata={op_name="jit(step)/transpose(jvp(log_probs))/encode/dot"}
  %s = (bf16[2,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)}) all-gather-start(%a), metadata={op_name="jit(step)/judge/dot"}
  %e = bf16[16,8]{1,0} all-gather-done(%s)
  %b = f32[8]{0} conditional(%a, %a, %a), branch_computations={%short, %long}, metadata={op_name="jit(step)/judge/cond"}
  %c = f32[8]{0} conditional(%a, %a, %a), true_computation=%short, false_computation=%long, metadata={op_name="jit(step)/judge/cond"}
  %u = f32[8]{0} fusion(%b), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/update/mul"}, backend_config={"window_config":{"estimated_cycles":"2"}}
  ROOT %o = f32[8]{0} fusion(%u), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"4"}}
}
"""  # noqa: E501


def test_cycles_are_multiplied_by_the_rounds_of_their_loops():
  program = hlo.analyse(PROGRAM, bytes_per_cycle=8)
  assert program.tokens == 7
  assert program.token_cycles == 3 * 10 + 5
  assert program.cycles == {
    'encode': 0,
    'decode': 7 * (3 * 10 + 5),
    'judge': 2 * 50,  # the longer branch of each conditional
    'log_probs': 0,
    'backward': 0,
    'update': 2,
    'other': 4,
  }


def test_waits_for_fetches_are_what_the_work_beside_them_does_not_cover():
  program = hlo.analyse(PROGRAM, bytes_per_cycle=8)
  # The fetches arrive at cycles 64 and 80, and the layers take 30.
  assert program.token_waits == (64 - 30) + 16
  assert program.waits['decode'] == 7 * program.token_waits
  assert sum(program.waits.values()) == program.waits['decode']


def test_kernels_without_an_estimate_are_counted():
  assert hlo.analyse(PROGRAM, bytes_per_cycle=8).kernels == 7


def test_collectives_have_a_kind_a_size_and_a_place():
  found = {
    (c.kind, c.phase, c.in_loop): c
    for c in hlo.analyse(PROGRAM, bytes_per_cycle=8).collectives
  }
  assert set(found) == {
    ('all-gather', 'decode', True),
    ('all-reduce', 'backward', False),
    ('all-gather', 'judge', False),
    ('all-gather', 'encode', False),
  }
  # It overlaps with the sampling loop but runs once.
  assert found['all-gather', 'encode', False].times == 1
  gather = found['all-gather', 'decode', True]
  assert (gather.bytes, gather.times) == (16 * 4 * 2, 7)
  assert gather.shapes == ((16, 4),)
  assert found['all-reduce', 'backward', False].bytes == 4 * 4 * 2 + 2 * 2 * 4
  # A started collective also lists its operands.
  assert found['all-gather', 'judge', False].bytes == 16 * 8 * 2
