"""Sequence classifiers of Hugging Face as reward models."""

import functools
import json

from etils import epath
import numpy as np
import pytest

from ipo_md import judges
from ipo_md import models
from ipo_md.checkpoints import hf_classifier
from ipo_md.checkpoints import hf_config
from ipo_md.checkpoints import load
from ipo_md.checkpoints import model_folder
from ipo_md.core import sharding
from ipo_md.judges import reading
from tests.checkpoints import networks
from tests.judges import tiny_reward_model as tiny


def made(folder, **options):
  return models.Model(
    functools.partial(
      model_folder.network,
      path=str(folder),
      dropout_rate=0.0,
      scan=False,
      **options,
    )
  )


@pytest.mark.slow
def test_it_is_a_reward_model_on_the_device(tmp_path):
  folder = tiny.write(tmp_path / 'judge', 'turns')
  model = made(folder, reward_head=1)
  mesh = sharding.make_mesh((1, -1, 1))
  params = load.load_params(str(folder), model, mesh, name='JUDGE')
  assert 'logits_dense' not in params['decoder']
  read = reading.Reader(
    vocabulary=model_folder.vocabulary(path=str(folder)),
    text=tiny.CASES['turns'][1],
    max_length=512,
  )
  golden = json.loads(tiny.GOLDEN.read_text())['turns']
  rows = [read(x, pair)[0] for x, *pair in golden['texts'][:8]]
  judged = judges.reward_model(params, reading.grouped(rows), model=model)
  np.testing.assert_allclose(judged.rewards, golden['rewards'][:8], atol=1e-4)


@pytest.mark.parametrize('case', tiny.CASES)
def test_it_is_no_policy(case, tmp_path):
  folder = tiny.write(tmp_path / 'judge', case)
  with pytest.raises(ValueError, match='ForSequenceClassification.*no.*policy'):
    _ = made(folder).abstract_params
  # Nor with sizes that are stated.
  with pytest.raises(ValueError, match='reward_head: 1 in the checkpoint, 0'):
    networks.load(made(folder, reward_head=0), folder)
  with pytest.raises(ValueError, match='reward_head: 1 in the checkpoint, 2'):
    networks.load(made(folder, reward_head=2), folder)


def test_other_models_are_read_as_before(tmp_path):
  for family in networks.FAMILIES:
    path = networks.HF / family / 'config.json'
    assert hf_classifier.kind(json.loads(path.read_text())) is None
  for config in ({}, {'architectures': None}, {'architectures': []}):
    assert hf_classifier.fields(config) == {}
  llama = {'architectures': ['LlamaForSequenceClassification']}
  one = {'id2label': {'0': 'LABEL_0'}}
  assert hf_classifier.fields(llama | one)['reward_head'] == 1
  with pytest.raises(
    ValueError, match='2 labels'
  ):  # the default is not written
    hf_classifier.fields(llama)
  assert hf_classifier.fields(llama | {'num_labels': 1})['reward_head'] == 1


def test_the_file_is_named(tmp_path):
  folder = tiny.write(tmp_path / 'judge', 'bos', num_labels=4)
  with pytest.raises(ValueError, match='config.json.*4 labels.*has 1'):
    hf_config.read(epath.Path(folder) / 'config.json')
