"""Small networks with checkpoints in testdata, and steps that tests share."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np

from ipo_md.checkpoints import convert as convert_lib
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import hf_config
from ipo_md.models import decoder_only
from ipo_md.models import model
from ipo_md.models import t5

TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata'
T5X = TESTDATA / 't5x' / 't5x_tiny_checkpoint' / 'checkpoint_3'
HF = TESTDATA / 'hf'
FAMILIES = ('t5_v1_1', 'llama', 'mistral', 'mixtral')
# Shards in bfloat16; relu and a tied head; a tied head without scaling. They
# are made by testdata/hf/make.py.
VARIANTS = ('llama_3', 't5_v1_0', 't5_v1_1_shared')


@functools.cache
def network(family, **overrides):
  """Returns the model that the config.json of a family describes."""
  fields = hf_config.model_fields(
    json.loads((HF / family / 'config.json').read_text())
  )
  family_class = t5.T5 if family.startswith('t5') else decoder_only.DecoderOnly
  fields |= {'dropout_rate': 0.0, 'scan': False} | overrides
  return model.Model(functools.partial(family_class, **fields))


def t5x_network():
  """Returns the model of the checkpoint `T5X`."""
  return network(
    't5_v1_1',
    vocab_size=256,
    emb_dim=64,
    head_dim=16,
    num_decoder_layers=2,
    mlp_dim=128,
  )


def load(network, path, **kwargs):
  """Reads all parameters of a network; errors call the path PATH."""
  return formats.read_params(
    str(path), network.abstract_params, network.config, name='PATH', **kwargs
  )


def convert(network, source, output, output_format, **kwargs):
  """Runs `convert` on a network."""
  stated = {'context_length': 64, 'bos_id': 1, 'eos_id': 2}
  convert_lib.convert(
    model=network,
    initial_checkpoint_path=str(source),
    output_dir=str(output),
    output_format=output_format,
    **(stated | kwargs),
  )


def assert_equal(one, other):
  """Asserts that two trees are equal bit for bit."""
  jax.tree.map(np.testing.assert_array_equal, one, other)


def copied(source, tmp_path):
  """Copies a checkpoint into tmp_path/copy, to be damaged."""
  shutil.copytree(source, tmp_path / 'copy')
  return tmp_path / 'copy'


def truncate(path):
  """Removes the last 100 bytes of a file."""
  path.write_bytes(path.read_bytes()[:-100])
