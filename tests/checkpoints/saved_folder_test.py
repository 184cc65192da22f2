"""What MODEL_DIR/model says of a run, and which tokenizers go together."""

import json

from etils import epath
import jax
import pytest

from ipo_md import data
from ipo_md.checkpoints import convert
from ipo_md.checkpoints import load
from ipo_md.checkpoints import model_folder
from ipo_md.checkpoints import saved_folder
from ipo_md.core import sharding
from tests.checkpoints import model_folder_test
from tests.checkpoints import networks

folder_fixture = model_folder_test.folder_fixture


@pytest.fixture(name='other')
def other_fixture(tmp_path):
  """A tokenizer in which ids stand for other texts, and its vocabulary."""
  place = tmp_path / 'other'
  place.mkdir()
  model_folder_test.tokenizer(place)
  path = place / 'tokenizer.json'
  content = json.loads(path.read_text())
  words = content['model']['vocab']
  words['a'], words['b'] = words['b'], words['a']
  path.write_text(json.dumps(content))
  return data.tokenizer_vocabulary(path=str(path), eos_id=1, bos_id=0)


def saved_by_a_run(folder, tmp_path, vocabulary, template=None):
  """Returns MODEL_DIR/model of a run that started from a folder."""
  run = tmp_path / 'run'
  run.mkdir()
  content = json.loads((folder / 'config.json').read_text())
  model = networks.network(
    'llama',
    vocab_size=content['vocab_size'],
    num_layers=1,
    logits_via_embedding=False,
  )
  saved_folder.save(str(run), model.config, vocabulary, str(folder), template)
  return run / 'model'


def test_a_run_keeps_the_tokenizer_that_it_has(folder, tmp_path, other):
  made = saved_by_a_run(folder, tmp_path, other)
  path = epath.Path(other.path)
  assert (made / 'tokenizer.json').read_text() == path.read_text()
  assert not (made / 'tokenizer_config.json').exists()
  config = json.loads((made / 'config.json').read_text())
  assert (config['eos_token_id'], config['bos_token_id']) == (1, 0)


@pytest.mark.parametrize('template', [None, 'mine'])
def test_a_run_keeps_the_template_that_it_has(folder, tmp_path, template):
  (folder / 'chat_template.jinja').write_text('theirs')
  stated = json.loads((folder / 'tokenizer_config.json').read_text())
  stated['chat_template'] = 'theirs'
  (folder / 'tokenizer_config.json').write_text(json.dumps(stated))
  model_folder._read_json.cache_clear()
  vocabulary = model_folder.vocabulary(path=str(folder))
  made = saved_by_a_run(folder, tmp_path, vocabulary, template)
  assert (made / 'tokenizer.json').exists()
  assert 'theirs' not in (made / 'tokenizer_config.json').read_text()
  path = made / 'chat_template.jinja'
  assert (path.read_text() if path.exists() else None) == template


@pytest.mark.parametrize('form', ['orbax', 't5x', 't5x_orbax'])
def test_a_converted_checkpoint_says_which_network_it_is_of(
  folder, tmp_path, form
):
  model = networks.network(
    'llama',
    vocab_size=model_folder.vocabulary(path=str(folder)).vocab_size,
    num_layers=1,
    logits_via_embedding=False,
  )
  convert.convert(
    model=model,
    initial_checkpoint_path=str(folder),
    output_dir=str(tmp_path / 'out'),
    output_format=form,
  )
  path = str(next((tmp_path / 'out').glob('checkpoint_*'), tmp_path / 'out'))
  found = model_folder.find(path)
  assert found == epath.Path(tmp_path / 'out' / 'model')
  assert model_folder.eos_id(path=path) == model_folder.eos_id(path=str(folder))
  assert (found / 'tokenizer.json').exists()


def test_a_folder_without_a_tokenizer_is_named(folder):
  (folder / 'tokenizer.json').unlink()
  with pytest.raises(ValueError, match=f'{folder} has no tokenizer.json'):
    model_folder.vocabulary(path=str(folder))
  assert model_folder.prompt_prefix(path=str(folder)) == (0,)


def test_byt5_has_bytes(tmp_path):
  config = {
    'model_type': 't5',
    'd_model': 8,
    'd_kv': 4,
    'd_ff': 8,
    'num_layers': 1,
    'num_heads': 2,
    'vocab_size': 384,
    'feed_forward_proj': 'gated-gelu',
  }
  (tmp_path / 'config.json').write_text(json.dumps(config))
  (tmp_path / 'model.safetensors').write_bytes(b'')
  assert model_folder.vocabulary(path=str(tmp_path)) is None
  config['tokenizer_class'] = 'ByT5Tokenizer'
  (tmp_path / 'config.json').write_text(json.dumps(config))
  model_folder._read_json.cache_clear()
  vocabulary = model_folder.vocabulary(path=str(tmp_path))
  assert list(vocabulary.encode('a')) == [ord('a') + 3]


def test_a_judge_with_another_tokenizer_is_refused(folder, other):
  own = model_folder.vocabulary(path=str(folder))
  path = str(folder / 'tokenizer.json')
  assert data.differing_token(own, path) == ''
  assert data.differing_token(other, str(folder / 'absent.json')) == ''
  assert "'a'" in data.differing_token(other, path)
  model = networks.network(
    'llama',
    vocab_size=own.vocab_size,
    num_layers=1,
    logits_via_embedding=False,
  )
  read = lambda vocabulary: load.load_params(
    str(folder),
    model,
    sharding.make_mesh((1, -1, 1)),
    name='JUDGE_CHECKPOINT_PATH',
    vocabulary=vocabulary,
  )
  assert jax.tree.leaves(read(own))
  with pytest.raises(
    ValueError, match='JUDGE_CHECKPOINT_PATH .* another tokenizer .*id '
  ):
    read(other)
