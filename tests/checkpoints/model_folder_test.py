"""A model that is built from what its checkpoint's folder says."""

import functools
import json
import shutil

from etils import epath
from flax import traverse_util
import gin
import jax
import numpy as np
import pytest
import tokenizers as hf_tokenizers

from ipo_md import models
from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import hf
from ipo_md.checkpoints import hf_source
from ipo_md.checkpoints import load
from ipo_md.checkpoints import model_folder
from ipo_md.core import gin_config
from ipo_md.core import sharding
from tests.checkpoints import networks

WORDS = ['cat', 'dog', 'sun', 'moon', 'tree', 'river']
T5X_GIN = """
from __gin__ import dynamic_registration
import __main__ as train_script
from t5x.examples.t5 import network

LAYERS = 3
# Parameters for network.T5Config:
# ======================================
network.T5Config.dropout_rate = %DROPOUT_RATE
network.T5Config.dtype = 'bfloat16'
network.T5Config.emb_dim = 512
network.T5Config.head_dim = 64
network.T5Config.logits_via_embedding = False
network.T5Config.mlp_activations = ('gelu', 'linear')
network.T5Config.mlp_dim = 1024
network.T5Config.num_decoder_layers = %LAYERS
network.T5Config.num_encoder_layers = \\
    %LAYERS
network.T5Config.num_heads = 6
network.T5Config.vocab_size = 32128
"""


def tokenizer(folder, *, before='<s> ', after=''):
  """Writes a byte-level tokenizer.json that puts BOS before a text."""
  made = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE())
  made.pre_tokenizer = hf_tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  made.decoder = hf_tokenizers.decoders.ByteLevel()
  trainer = hf_tokenizers.trainers.BpeTrainer(
    vocab_size=280,
    initial_alphabet=hf_tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=['<s>', '</s>', '<turn>'],
    show_progress=False,
  )
  made.train_from_iterator([' '.join(WORDS)] * 3, trainer)
  special = [(t, i) for i, t in enumerate(('<s>', '</s>', '<turn>'))]
  made.post_processor = hf_tokenizers.processors.TemplateProcessing(
    single=f'{before}$A{after}', pair='$A $B', special_tokens=special
  )
  made.save(str(folder / 'tokenizer.json'))
  return made.get_vocab_size()


@pytest.fixture(name='folder')
def folder_fixture(tmp_path):
  """A Llama of one layer with a tokenizer whose turns end with <turn>."""
  folder = tmp_path / 'llama'
  folder.mkdir()
  size = tokenizer(folder)
  model = networks.network(
    'llama', vocab_size=size, num_layers=1, logits_via_embedding=False
  )
  write(folder, model, model.init(jax.random.key(0)))
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'bos_token': '<s>', 'eos_token': {'content': '<turn>'}})
  )
  (folder / 'generation_config.json').write_text('{"eos_token_id": [1, 2]}')
  return folder


def write(folder, model, params):
  """Writes parameters as a Hugging Face folder."""
  flat = {
    k: np.asarray(v)
    for k, v in traverse_util.flatten_dict(params, sep='/').items()
  }
  stored = {
    k: arrays.Stored(v.shape, v.dtype, lambda v=v: v) for k, v in flat.items()
  }
  layout = {k: [arrays.Piece(k)] for k in flat}
  hf.write(
    epath.Path(folder),
    arrays.Checkpoint(stored, layout, 'test'),
    flat,
    model.config,
    hf_source.Source(context_length=64, bos_id=0, eos_id=1),
  )


@pytest.mark.parametrize('family', networks.FAMILIES)
def test_the_network_is_that_of_config_json(family):
  made = models.Model(
    functools.partial(
      model_folder.network,
      path=str(networks.HF / family),
      dropout_rate=0.0,
      scan=False,
    )
  )
  assert made.config == networks.network(family).config


def test_t5x_states_its_network_in_gin(tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(networks.T5X, run / 'checkpoint_3')
  (run / 'config.gin').write_text(T5X_GIN)
  for path in (run, run / 'checkpoint_3'):
    folder = model_folder.find(str(path))
    fields = model_folder._fields(str(folder))
    assert fields == {
      'vocab_size': 32128,
      'emb_dim': 512,
      'head_dim': 64,
      'num_heads': 6,
      'mlp_dim': 1024,
      'mlp_activations': ('gelu', 'linear'),
      'logits_via_embedding': False,
      'num_encoder_layers': 3,
      'num_decoder_layers': 3,
    }
  assert model_folder.eos_id(path=str(run)) == 1
  assert model_folder.prompt_suffix(path=str(run)) == (1,)


def test_what_a_gin_file_does_not_state_is_named(tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(networks.T5X, run / 'checkpoint_3')
  text = T5X_GIN.replace('network.T5Config.num_heads = 6\n', '')
  (run / 'config.gin').write_text(text)
  with pytest.raises(ValueError, match='config.gin does not state num_heads'):
    model_folder._fields(str(model_folder.find(str(run))))


def test_without_a_description_the_cure_is_named(tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(networks.T5X, run / 'checkpoint_3')
  with pytest.raises(ValueError, match=r'config\.json.*gin/models'):
    model_folder.find(str(run))
  with pytest.raises(ValueError, match='INITIAL_CHECKPOINT_PATH'):
    model_folder.find(None)


def test_every_end_of_a_completion_is_found(folder):
  assert model_folder.eos_id(path=str(folder)) == (2, 1)
  assert model_folder.bos_id(path=str(folder)) == 0
  vocabulary = model_folder.vocabulary(path=str(folder))
  assert (vocabulary.eos_id, vocabulary.bos_id) == (2, 0)


@pytest.mark.parametrize(
  ('before', 'after', 'expected'),
  [
    ('<s> ', '', ((0,), ())),
    ('', ' </s>', ((), (1,))),
    ('', '', ((), ())),
    ('<s> <turn> ', ' </s>', ((0, 2), (1,))),
  ],
)
def test_the_tokenizer_says_what_stands_around_a_prompt(
  folder, before, after, expected
):
  tokenizer(folder, before=before, after=after)
  path = str(folder)
  found = (
    model_folder.prompt_prefix(path=path),
    model_folder.prompt_suffix(path=path),
  )
  assert found == expected


def test_a_folder_without_eos_names_the_macro(folder):
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(
    json.dumps(config | {'eos_token_id': None})
  )
  (folder / 'generation_config.json').unlink()
  (folder / 'tokenizer_config.json').unlink()
  with pytest.raises(ValueError, match='states no EOS token.*Set EOS_ID'):
    model_folder.eos_id(path=str(folder))


def command(tmp_path, run, *files, **macros):
  """Runs what the gin files describe, over preference rows of words."""
  rows = [
    {'prompt': f'{a} {b}', 'chosen': f' {a}', 'rejected': f' {b} {a}'}
    for a in WORDS
    for b in WORDS
  ]
  data = tmp_path / 'rows.jsonl'
  data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  gin.clear_config()
  gin_config.add_root()
  bindings = {
    'MODEL_DIR': repr(str(tmp_path / run)),
    'TRAIN_FILE': repr(str(data)),
    'VALIDATION_FILE': repr(str(data)),
    'TASK_FEATURE_LENGTHS': {'inputs': 16, 'targets': 8},
  } | macros
  gin_config.parse(
    [
      f'gin/runs/{run.partition("-")[0]}.gin',
      'gin/models/from_checkpoint.gin',
      'gin/tasks/preference_files.gin',
      *files,
    ],
    [f'{name} = {value}' for name, value in bindings.items()],
  )
  gin.query_parameter('RUN/gin.macro.value').scoped_configurable_fn()
  gin.clear_config()
  return tmp_path / run


TRAINING = {
  'TRAIN_STEPS': 1,
  'BATCH_SIZE': 8,
  'EVAL_EXAMPLES': 8,
  'EVAL_BATCH_SIZE': 8,
}


@pytest.mark.slow
def test_two_paths_are_all_that_a_run_needs(folder, tmp_path):
  start = {'INITIAL_CHECKPOINT_PATH': repr(str(folder))}
  judge = command(
    tmp_path,
    'judge',
    'gin/judges/reward_model.gin',
    JUDGE_LENGTH=24,
    **TRAINING,
    **start,
  )
  online = command(
    tmp_path,
    'online',
    'gin/judges/reward_model.gin',
    'gin/algorithms/ipo_md.gin',
    JUDGE_LENGTH=24,
    MAX_NEW_TOKENS=8,
    JUDGE_CHECKPOINT_PATH=repr(str(judge)),
    **TRAINING,
    **start,
  )
  # The run describes its own checkpoints, so its folder is a model as well.
  saved = json.loads((online / 'model' / 'config.json').read_text())
  theirs = json.loads((folder / 'config.json').read_text())
  assert saved | {'dtype': None} == theirs | {'dtype': None}
  for name in ('tokenizer.json', 'generation_config.json'):
    assert (online / 'model' / name).read_bytes() == (
      folder / name
    ).read_bytes()
  # A resumed run writes it again, whatever an interrupted one has left of it.
  (online / 'model' / 'config.json').unlink()
  command(
    tmp_path,
    'online',
    'gin/judges/reward_model.gin',
    'gin/algorithms/ipo_md.gin',
    JUDGE_LENGTH=24,
    MAX_NEW_TOKENS=8,
    JUDGE_CHECKPOINT_PATH=repr(str(judge)),
    **TRAINING | {'TRAIN_STEPS': 2},
    **start,
  )
  assert (online / 'COMPLETED').read_text() == '2\n'
  assert (online / 'model' / 'config.json').exists()
  drawn = command(
    tmp_path,
    'infer',
    CHECKPOINT_PATH=repr(str(online)),
    MAX_NEW_TOKENS=4,
    PROMPT_TASK='@preference_files.pairs()',
    INFER_SPLIT="'validation'",
    BATCH_SIZE=8,
  )
  assert (drawn / 'completions.jsonl').read_text().count('\n') == 36


@pytest.mark.slow
def test_a_run_from_random_parameters_takes_the_config_alone(folder, tmp_path):
  (folder / 'model.safetensors').unlink()
  run = command(
    tmp_path,
    'supervised',
    MODEL_CONFIG_PATH=repr(str(folder)),
    **TRAINING,
  )
  model = networks.network(
    'llama',
    vocab_size=model_folder._fields(str(folder))['vocab_size'],
    num_layers=1,
    logits_via_embedding=False,
  )
  params = load.load_params(
    str(run), model, sharding.make_mesh((1, -1, 1)), name='PATH'
  )
  assert params['decoder']['layers']


def test_the_chat_template_of_a_folder(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
  (tmp_path / 'model.safetensors').write_bytes(b'')
  find = lambda: model_folder.chat_template(path=str(tmp_path))
  assert model_folder.chat_template(path=None) is None
  (tmp_path / 'chat_template.jinja').write_text('a')
  assert find() is None  # There is no tokenizer.json.
  tokenizer(tmp_path)
  assert find() == str(tmp_path)
  (tmp_path / 'chat_template.jinja').unlink()
  assert find() is None
  (tmp_path / 'tokenizer_config.json').write_text('{"chat_template": "a"}')
  model_folder._read_json.cache_clear()
  assert find() == str(tmp_path)
