"""Runs of a few updates on a micro T5, for several test files."""

import functools

import jax
import numpy as np

from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.algorithms import online as online_lib
from ipo_md.algorithms import players as players_lib
from ipo_md.algorithms import supervised as supervised_lib
from ipo_md.algorithms import win_rate
from ipo_md.checkpoints import load
from ipo_md.core import sharding
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.judges import learned
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.optim import optimizers
from ipo_md.sampling import sampler
from ipo_md.training import config
from ipo_md.training import loop
from tasks.mini_tldr import tasks

LENGTHS = {'inputs': 74, 'targets': 36}
SIZES = {
  'vocab_size': 320,
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 8,
  'num_encoder_layers': 1,
  'num_decoder_layers': 1,
  'mlp_dim': 16,
  'mlp_activations': ('gelu', 'linear'),
  'logits_via_embedding': False,
  'dropout_rate': 0.1,
  'scan': False,
}


@functools.cache
def micro(**changes) -> model_lib.Model:
  return model_lib.Model(functools.partial(t5.T5, **SIZES | changes))


@functools.cache
def dataset(name: str, prompts_only: bool = False) -> dataset_lib.Dataset:
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths=LENGTHS,
    split='validation',
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    prompts_only=prompts_only,
  )


def supervised(model_dir, steps_=4, **changes):
  arguments = {
    'model_dir': str(model_dir),
    'seed': 0,
    'mesh_shape': (1, -1, 1),
    'batch_size': 8,
    'model': micro(),
    'optimizer': functools.partial(optimizers.adafactor, learning_rate=1e-2),
    'step': functools.partial(supervised_lib.supervised_step, z_loss=1e-4),
    'dataset': lambda: dataset('mini_tldr_sft'),
    'schedule': config.Schedule(
      train_steps=steps_, log_period=1, eval_period=2, checkpoint_period=2
    ),
    'start': config.Start(),
    'evaluation': config.Evaluation(
      metrics=supervised_lib.supervised_metrics,
      dataset=lambda: dataset('mini_tldr_sft'),
      batch_size=8,
      examples=16,
    ),
  }
  loop.train(**arguments | changes)


def online(
  model_dir,
  start,
  judge,
  steps_=4,
  *,
  loss=functools.partial(losses.ipo, tau=0.1),
  mixture_coefs=(0.125, 0.125),
  players=players_lib.Players(),
  **changes,
):
  judge_fn = functools.partial(learned.likelihood, model=micro())
  supervised(
    model_dir,
    steps_,
    step=functools.partial(
      online_lib.online_step,
      feedback=objective.Feedback(judge=judge_fn),
      loss=loss,
      mixture_coefs=mixture_coefs,
      players=players,
      sampler=sampler.Sampler(max_new_tokens=6, eos_id=1),
    ),
    dataset=lambda: dataset('mini_tldr_prompts', True),
    start=config.Start(
      initial_checkpoint_path=str(start),
      reference_checkpoint_path=str(start),
      judge_checkpoint_path=str(judge),
      judge_model=micro(),
      players=players,
    ),
    evaluation=config.Evaluation(
      metrics=functools.partial(
        win_rate.win_rate_metrics,
        judge=judge_fn,
        sampler=sampler.Sampler(max_new_tokens=6, eos_id=1),
      ),
      dataset=lambda: dataset('mini_tldr_prompts', True),
      batch_size=8,
      examples=16,
    ),
    **changes,
  )


def params_of(path, **changes) -> dict:
  return load.load_params(
    str(path),
    micro(),
    sharding.make_mesh((1, -1, 1)),
    name='INITIAL_CHECKPOINT_PATH',
    **{'vocabulary': tasks.VOCABULARY} | changes,
  )


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)
