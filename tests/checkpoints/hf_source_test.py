"""What is carried over to a checkpoint for Hugging Face."""

import json
import shutil

import pytest

from tests.checkpoints import networks

FILES = (
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'tokenizer.model',
  'vocab.json',
  'merges.txt',
)


@pytest.fixture
def source(tmp_path):
  path = networks.copied(networks.HF / 'llama_3', tmp_path)
  for name in FILES:
    (path / name).write_text(json.dumps(name))
  (path / 'additional_chat_templates').mkdir()
  (path / 'additional_chat_templates' / 'tools.jinja').write_text('t')
  (path / 'README.md').write_text('')
  changes = {
    'max_position_embeddings': 131072,
    'bos_token_id': 128000,
    'eos_token_id': [128001, 128008, 128009],
    'pad_token_id': 128004,
    'torch_dtype': 'bfloat16',
    'initializer_range': 0.03,
  }
  (path / 'config.json').write_text(json.dumps(_config(path) | changes))
  return path


def _config(path):
  return json.loads((path / 'config.json').read_text())


def _check(source, output):
  ours, theirs = _config(output), _config(source)
  storage = {'torch_dtype', 'dtype', 'tie_word_embeddings'}
  assert ours.keys() >= theirs.keys()
  assert {k: ours[k] for k in theirs if k not in storage} == {
    k: v for k, v in theirs.items() if k not in storage
  }
  assert ours['torch_dtype'] == 'float32'
  for name in (*FILES, 'additional_chat_templates/tools.jinja'):
    assert (output / name).read_text() == (source / name).read_text()
  assert not (output / 'README.md').exists()


def test_a_hugging_face_checkpoint_loses_nothing(source, tmp_path):
  networks.convert(
    networks.network('llama_3'),
    source,
    tmp_path / 'out',
    'hf',
    context_length=None,
  )
  _check(source, tmp_path / 'out')


def test_a_run_names_the_directory_that_it_came_from(source, tmp_path):
  network = networks.network('llama_3')
  networks.convert(network, source, tmp_path / 'run', 'orbax')
  networks.convert(
    network,
    tmp_path / 'run',
    tmp_path / 'out',
    'hf',
    context_length=None,
    hf_source_path=str(source),
  )
  _check(source, tmp_path / 'out')
  networks.assert_equal(
    networks.load(network, tmp_path / 'out'), networks.load(network, source)
  )


def test_without_a_directory_the_values_are_stated(source, tmp_path):
  network = networks.network('llama_3')
  networks.convert(network, source, tmp_path / 'run', 'orbax')
  shutil.rmtree(tmp_path / 'run' / 'model')
  for field in ('context_length', 'eos_id'):
    with pytest.raises(ValueError, match=f'{field.upper()} is not set'):
      networks.convert(
        network, tmp_path / 'run', tmp_path / 'out', 'hf', **{field: None}
      )
    assert not (tmp_path / 'out').exists()
  networks.convert(
    network, tmp_path / 'run', tmp_path / 'out', 'hf', context_length=4096
  )
  config = _config(tmp_path / 'out')
  assert config['max_position_embeddings'] == 4096
  assert (config['bos_token_id'], config['eos_token_id']) == (1, 2)


def test_a_stated_context_length_replaces_that_of_the_directory(
  source, tmp_path
):
  networks.convert(
    networks.network('llama_3'),
    source,
    tmp_path / 'out',
    'hf',
    context_length=8192,
  )
  assert _config(tmp_path / 'out')['max_position_embeddings'] == 8192


@pytest.mark.parametrize('family', networks.FAMILIES + networks.VARIANTS)
def test_fields_of_every_family_stay(tmp_path, family):
  path = networks.HF / family
  networks.convert(
    networks.network(family), path, tmp_path / 'out', 'hf', context_length=None
  )
  ours, theirs = _config(tmp_path / 'out'), _config(path)
  storage = {'torch_dtype', 'dtype', 'tie_word_embeddings'}
  assert {k: v for k, v in ours.items() if k not in storage} == {
    k: v for k, v in theirs.items() if k not in storage
  } | {k: v for k, v in ours.items() if k == 'scale_decoder_outputs'}


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('mixtral', 'is of another model: '),
    ('none', 'is not a Hugging Face directory: it has no config.json'),
  ],
)
def test_another_directory_is_an_error(tmp_path, path, message):
  with pytest.raises(ValueError, match=f'HF_SOURCE_PATH .*{path}.*{message}'):
    networks.convert(
      networks.network('llama'),
      networks.HF / 'llama',
      tmp_path / 'out',
      'hf',
      hf_source_path=str(networks.HF / path),
    )
  assert not (tmp_path / 'out').exists()
