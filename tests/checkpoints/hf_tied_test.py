"""Embeddings and heads that a checkpoint stores once, twice or padded."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from tests.checkpoints import networks

HEAD = 'lm_head.weight'
DECODER = 'model.embed_tokens.weight'
T5 = 'shared.weight'


def _edited(tmp_path, family, edit, **config):
  """Copies a checkpoint, changing its arrays and config.json."""
  path = tmp_path / 'copy'
  shutil.copytree(networks.HF / family, path)
  arrays = safetensors.numpy.load_file(path / 'model.safetensors')
  edit(arrays)
  safetensors.numpy.save_file(arrays, path / 'model.safetensors')
  file = path / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | config))
  return path


def _stored(family, name):
  path = networks.HF / family / 'model.safetensors'
  return safetensors.numpy.load_file(path)[name]


@pytest.mark.parametrize('names', [(DECODER,), (HEAD,), (DECODER, HEAD)])
def test_tied_decoder_under_any_of_its_names(tmp_path, names):
  def edit(arrays):
    embedding = arrays.pop(DECODER)
    arrays |= dict.fromkeys(names, embedding)

  path = _edited(tmp_path, 'llama', edit)
  params = networks.load(networks.network('llama'), path)
  np.testing.assert_array_equal(
    params['token_embedder']['embedding'], _stored('llama', DECODER)
  )


@pytest.mark.parametrize(
  'name',
  [HEAD, 'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'],
)
def test_tied_t5_under_any_of_its_names(tmp_path, name):
  def edit(arrays):
    embedding = arrays.pop(T5)
    arrays[name] = embedding

  path = _edited(tmp_path, 't5_v1_0', edit)
  params = networks.load(networks.network('t5_v1_0'), path)
  np.testing.assert_array_equal(
    params['token_embedder']['embedding'], _stored('t5_v1_0', T5)
  )


def test_another_head_is_never_replaced_by_the_embedding(tmp_path):
  path = _edited(
    tmp_path, 'mistral', lambda arrays: None, tie_word_embeddings=True
  )
  with pytest.raises(ValueError, match=f'{HEAD} to {DECODER}, but their val'):
    networks.load(networks.network('mistral', logits_via_embedding=True), path)
  params = networks.load(networks.network('mistral'), path)
  np.testing.assert_array_equal(
    params['decoder']['logits_dense']['kernel'], _stored('mistral', HEAD).T
  )


@pytest.mark.parametrize(
  ('family', 'name', 'message'),
  [
    ('t5_v1_0', HEAD, 'A T5 with scaled states and a head of its own is not'),
    ('t5_v1_0', 'encoder.embed_tokens.weight', 'must be one array, but'),
    ('t5_v1_1', 'decoder.embed_tokens.weight', 'must be one array, but'),
  ],
)
def test_copies_with_other_values_are_an_error(tmp_path, family, name, message):
  def edit(arrays):
    arrays[name] = arrays[T5] * 2

  path = _edited(tmp_path, family, edit)
  with pytest.raises(ValueError, match=message) as error:
    networks.load(networks.network(family), path)
  assert T5 in str(error.value)
  assert name in str(error.value)


@pytest.mark.parametrize('family', ['llama', 'mistral', 't5_v1_1', 't5_v1_0'])
def test_rows_beyond_the_vocabulary_are_cut_and_said(tmp_path, family, capsys):
  def edit(arrays):
    for name in {DECODER, T5, HEAD} & arrays.keys():
      arrays[name] = np.concatenate([arrays[name], arrays[name][:7]])

  network = networks.network(family)
  path = _edited(tmp_path, family, edit)
  networks.assert_equal(
    networks.load(network, path),
    networks.load(network, networks.HF / family),
  )
  rows = network.config.vocab_size
  out = ''.join(capsys.readouterr())
  assert f'has {rows + 7} rows, of which the first {rows} are read' in out


def test_too_few_rows_have_no_hint_of_another_file(tmp_path):
  def edit(arrays):
    arrays[DECODER] = arrays[DECODER][:-1]

  path = _edited(tmp_path, 'llama', edit)
  with pytest.raises(ValueError, match=r'\(1 arrays differ\)') as error:
    networks.load(networks.network('llama'), path)
  assert 'gin/models' not in str(error.value)
