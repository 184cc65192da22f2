"""Names of slices."""

import pytest

from ipo_md.core import tpu_slices


@pytest.mark.parametrize(
  ('topology', 'message'),
  [
    ('v5e:4x5', "v5e has no slice '4x5'. Nearest: 'v5e:4x4'"),
    ('v4:4x4', "Nearest: 'v4:2x2x4'"),
    ('v5e:32', "v5e has no slice '32'"),
    ('v7:4x4', 'chips are v4, v5e, v5p, v6e'),
    ('v5litepod-16', 'chips are v4, v5e, v5p, v6e'),
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
  units = {'v4': 8, 'v5e': 4, 'v5p': 8, 'v6e': 16}
  for name, chip in tpu_slices.CHIPS.items():
    by_clock = chip.clock * units[name] * 128 * 128 * 2
    assert by_clock == pytest.approx(chip.flops, rel=0.01)


def test_sizes():
  assert tpu_slices.size('v5e:4x8') == 32
  assert tpu_slices.size('v4:2x2x1') == 4
