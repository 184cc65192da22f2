"""Names of slices."""

import pytest

from ipo_md.core import tpu_slices


@pytest.mark.parametrize(
  ('topology', 'message'),
  [
    ('v5e:4x5', "v5e has no slice '4x5'. Nearest: 'v5e:4x4'"),
    ('v4:4x4', "Nearest: 'v4:2x2x4'"),
    ('v5e:32', "v5e has no slice '32'"),
    ('v7:4x4', 'chips are v4, v5e, v5p, v6e, tpu7x'),
    ('v5litepod-16', 'chips are v4, v5e, v5p, v6e, tpu7x'),
    ('v5p:4x4x6', "v5p has no slice '4x4x6'"),
    ('v5p:8x4x4', "Nearest: 'v5p:4x4x8'"),
    ('v5p:16x16x28', "Nearest: 'v5p:16x16x24'"),
    ('v5e:4x4x4', "v5e has no slice '4x4x4'"),
    ('v5e:', "v5e has no slice ''"),
    ('', 'chips are v4'),
    ('v5e:0x4', 'no slice'),
  ],
)
def test_an_unknown_topology_offers_the_nearest(topology, message):
  with pytest.raises(ValueError, match='TOPOLOGY = ') as raised:
    tpu_slices.chip(topology)
  assert message in str(raised.value)


def test_rates_are_those_of_the_matrix_units():
  units = {'v4': 8, 'v5e': 4, 'v5p': 8, 'v6e': 16, 'tpu7x': 32}
  for name, chip in tpu_slices.CHIPS.items():
    by_clock = chip.clock * units[name] * 128 * 128 * 2
    assert by_clock == pytest.approx(chip.flops, rel=0.01)


def test_sizes():
  assert tpu_slices.size('v5e:4x8') == 32
  assert tpu_slices.size('v4:2x2x1') == 4


@pytest.mark.parametrize(
  'topology', ['v5p:16x16x24', 'v5p:4x4x12', 'tpu7x:2x2x1', 'tpu7x:16x24x24']
)
def test_larger_cubes_and_the_seventh_generation_are_on_offer(topology):
  kind = topology.partition(':')[0]
  assert tpu_slices.chip(topology) is tpu_slices.CHIPS[kind]


def test_links_are_counted_one_way():
  """Google's pages state both ways together, in GB/s."""
  both = {'v5e': 400, 'v5p': 1200, 'v6e': 800, 'tpu7x': 1200}
  for name, published in both.items():
    assert tpu_slices.CHIPS[name].ici_bandwidth == published * 1e9 / 2


def test_a_device_has_its_part_of_the_chip():
  chip = tpu_slices.chip('tpu7x:2x2x1')
  assert chip.device.flops == 1153.5e12
  assert chip.device.hbm_bytes == 96 * 2**30
  assert chip.device.clock == chip.clock
  assert tpu_slices.CHIPS['v5e'].device == tpu_slices.CHIPS['v5e']
