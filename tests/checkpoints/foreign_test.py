"""Folders and files that are no checkpoints of a known format."""

import json

from etils import epath
import pytest

from ipo_md.checkpoints import locate
from tests.checkpoints import networks


def _files(**names):
  def make(path):
    path.mkdir()
    for name, content in names.items():
      (path / name.replace('__', '.')).write_bytes(content)

  return make


def _adapters(path):
  path.mkdir()
  config = {'peft_type': 'LORA', 'base_model_name_or_path': 'my/base'}
  (path / 'adapter_config.json').write_text(json.dumps(config))
  (path / 'adapter_model.safetensors').write_bytes(b'')


def _tensorflow(path):
  path.mkdir()
  (path / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-1"\n')
  (path / 'model.ckpt-1.index').write_bytes(b'')


def _trainer(path):
  (path / 'checkpoint-500').mkdir(parents=True)
  (path / 'checkpoint-500' / 'config.json').write_text('{}')


def _hub(path):
  (path / 'snapshots' / 'abc').mkdir(parents=True)
  (path / 'snapshots' / 'abc' / 'config.json').write_text('{}')


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (_adapters, 'adapters of PEFT.* base model, my/base, or merge'),
    (_tensorflow, 'checkpoint: TensorFlow and Keras checkpoints are not read'),
    (_files(saved_model__pb=b''), 'TensorFlow'),
    (_files(tf_model__h5=b''), 'TensorFlow'),
    (_files(flax_model__msgpack=b''), 'Flax msgpack'),
    (_files(mine__Q4_K__ggml=b''), 'GGML is not read'),
    (_files(model__onnx=b''), 'ONNX is not read'),
    (_files(__0_0__distcp=b''), "PyTorch's distributed checkpoints"),
    (_files(pytorch_model__bin=b''), 'pickles are not read'),
    (
      _files(consolidated__safetensors=b'', params__json=b''),
      "original layout of the model's authors",
    ),
    (_files(model__fp16__safetensors=b''), 'read from model.safetensors'),
    (_files(tokenizer__json=b''), 'a tokenizer without weights'),
    (_files(config__gin=b''), 'has not saved a checkpoint yet'),
    (_files(), 'The folder is empty'),
    (_trainer, 'folders that are checkpoints: checkpoint-500'),
    (_hub, 'folders that are checkpoints: snapshots/abc'),
    (lambda path: None, 'is not a directory. It does not exist'),
    (lambda path: path.write_bytes(b''), 'is not a directory. It is a file'),
  ],
)
def test_the_true_cause_is_named(tmp_path, make, message):
  make(tmp_path / 'it')
  with pytest.raises(ValueError, match=message) as error:
    locate.detect(str(tmp_path / 'it'), 'PATH')
  assert f'PATH {tmp_path}/it' in str(error.value)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('model.safetensors', 'give the folder that holds it'),
    ('model.ggml', 'GGML'),
    ('pytorch_model.bin', 'pickles'),
  ],
)
def test_a_file_in_place_of_a_folder(tmp_path, name, message):
  (tmp_path / name).write_bytes(b'')
  with pytest.raises(ValueError, match=f'{name}.* {message}'):
    locate.detect(str(tmp_path / name), 'PATH')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda p: (p / 'model.safetensors').write_text(
        'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'
      ),
      'pointer of Git LFS',
    ),
    (
      lambda p: (p / 'model.safetensors').rename(p / 'model.fp16.safetensors'),
      'model.fp16.safetensors: weights are read from model.safetensors',
    ),
    (
      lambda p: (p / 'model.safetensors').rename(p / 'flax_model.msgpack'),
      'Flax msgpack',
    ),
    (
      lambda p: (p / 'config.json').write_text(
        json.dumps({'quantization_config': {'quant_method': 'gptq'}})
      ),
      r'config.json: the weights are quantised \(gptq\)',
    ),
  ],
)
def test_a_folder_with_config_json_but_no_weights(tmp_path, change, message):
  path = networks.copied(networks.HF / 'llama', tmp_path)
  change(epath.Path(path))
  with pytest.raises(ValueError, match=message):
    networks.load(networks.network('llama'), path)
