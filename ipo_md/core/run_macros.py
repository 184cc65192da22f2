"""Macros of runs, checkpoints and models, by group (see `macros`)."""

from collections.abc import Mapping

from ipo_md.core import macro_kinds as kinds

Macro = kinds.Macro

_COUNT = kinds.Number(whole=True, low=1)
_NATURAL = kinds.Number(whole=True, low=0)
_ABOVE_ZERO = kinds.Number(low=0, above=True)
_AT_LEAST_ZERO = kinds.Number(low=0)
_FLAG = kinds.Flag()
_TEXT = kinds.Text()
_PATH = kinds.Text('a path')
_MODEL = kinds.Reference('a model', '@models.Model()', made=True)
_SHARDING = kinds.Dictionary(
  'logical axis', _TEXT, "{'embed': 'fsdp'}", empty=True
)


GROUPS: Mapping[str, Mapping[str, Macro]] = {
  'Run': {
    'RUN': Macro(
      kinds.Reference('a function', '@training.train'),
      'Function that is called; the run file binds it.',
    ),
    'MODEL_DIR': Macro(_PATH, 'Folder to which the run writes.'),
    'SEED': Macro(
      kinds.Number(whole=True, low=0, high=2**32 - 1),
      'Seed of everything that is random.',
    ),
    'MESH_SHAPE': Macro(
      kinds.Sequence(
        kinds.Number(whole=True, low=1, or_=-1), 1, 4, 'sizes of mesh axes'
      ),
      'Sizes of the axes data, fsdp and tensor, and of expert for a mixture of '
      'experts. One may be -1 and takes the remaining devices.',
    ),
    'BATCH_SIZE': Macro(_COUNT, 'Examples of an update, over all hosts.'),
    'ACCEPT_CHANGED_INPUTS': Macro(
      _FLAG,
      'Whether a run goes on although a file or checkpoint that it reads has '
      'changed under its path.',
    ),
    'TRACKER': Macro(
      kinds.Reference('a tracker', '@trackers.Wandb()', made=True),
      'Writer that shows metrics, samples and win rates as well.',
      'TensorBoard alone',
    ),
    'WANDB_PROJECT': Macro(_TEXT, 'Project of Weights & Biases.'),
    'WANDB_ENTITY': Macro(
      _TEXT, 'User or team to whom the run belongs there.', "the user's default"
    ),
    'WANDB_GROUP': Macro(_TEXT, 'Group of the run there.', 'no group'),
    'WANDB_TAGS': Macro(
      kinds.Sequence(_TEXT, what='texts'), 'Tags of the run there.', 'no tags'
    ),
    'WANDB_NAME': Macro(
      _TEXT, 'Name of the run there.', 'that of the folder MODEL_DIR'
    ),
    'WANDB_MODE': Macro(
      kinds.Text(choices=('online', 'offline')),
      "Whether it is uploaded, or recorded for 'wandb sync'.",
    ),
  },
  'Training': {
    'TRAIN_STEPS': Macro(_COUNT, 'Number of updates.'),
    'MICROBATCHES': Macro(
      _COUNT, 'Parts of a batch whose gradients are summed, to save memory.'
    ),
    'OPTIMIZER': Macro(
      kinds.Reference('an optimizer', '@optim.adam'), 'Optimizer of a run.'
    ),
    'LEARNING_RATE': Macro(_AT_LEAST_ZERO, 'Learning rate after the warm-up.'),
    'WARMUP_STEPS': Macro(_NATURAL, 'Updates of the linear warm-up.'),
    'DROPOUT_RATE': Macro(
      kinds.Number(low=0, high=1, below=True), 'Rate of dropout in training.'
    ),
    'Z_LOSS': Macro(
      _AT_LEAST_ZERO,
      "Weight of T5X's penalty on the log-normaliser, for supervised runs.",
    ),
    'LOG_PERIOD': Macro(
      _NATURAL, 'Updates between two lines of progress and metrics; 0: never.'
    ),
    'EVAL_PERIOD': Macro(
      _NATURAL, 'Updates between two evaluations; 0: at start and end only.'
    ),
    'EVAL_EXAMPLES': Macro(
      _COUNT, 'Held-out examples of an evaluation or a comparison.'
    ),
    'EVAL_BATCH_SIZE': Macro(_COUNT, 'Held-out examples at a time.'),
    'CHECKPOINT_PERIOD': Macro(
      _NATURAL, 'Updates between two checkpoints; 0: at the end only.'
    ),
    'KEEP_CHECKPOINTS': Macro(
      _COUNT, 'Number of latest checkpoints that are kept.', 'all'
    ),
    'KEEP_PERIOD': Macro(_NATURAL, 'Multiples that are kept, too; 0: none.'),
    'KEEP_BEST': Macro(
      _NATURAL, 'Checkpoints of the highest win rates that are kept as well.'
    ),
    'MAX_SKIPPED': Macro(
      _NATURAL, 'Updates in a row that may be skipped for their gradient.'
    ),
    'SKIP_GRADIENT_NORM': Macro(
      _ABOVE_ZERO,
      'Largest norm of a gradient that is not skipped.',
      'every finite one',
    ),
    'HANG_SECONDS': Macro(
      _AT_LEAST_ZERO,
      'Time without an update after which the run says where it hangs and '
      'exits; 0: never.',
    ),
    'PROFILE_START': Macro(
      _COUNT, 'First update of a profile.', 'on demand only'
    ),
    'PROFILE_STEPS': Macro(_COUNT, 'Updates of a profile.'),
  },
  'Checkpoints': {
    'INITIAL_CHECKPOINT_PATH': Macro(
      _PATH,
      'Checkpoint of the network that is trained or converted.',
      'random parameters',
    ),
    'REFERENCE_CHECKPOINT_PATH': Macro(
      _PATH, 'Checkpoint of the reference.', 'no reference'
    ),
    'JUDGE_CHECKPOINT_PATH': Macro(
      _PATH, 'Checkpoint of the judge.', 'a judge without parameters'
    ),
    'MODEL_CONFIG_PATH': Macro(
      _PATH, 'Checkpoint whose config and tokenizer the model has.', 'no such'
    ),
    'JUDGE_CONFIG_PATH': Macro(
      _PATH, 'Checkpoint whose config the judge has.', 'that of the policy'
    ),
    'CHECKPOINT_PATH': Macro(_PATH, 'Checkpoint that is sampled from.'),
    'COMPARATOR_CHECKPOINT_PATH': Macro(
      _PATH, 'Checkpoint of the comparator.', 'it does not judge'
    ),
    'PREFERENCE_MODEL_CHECKPOINT_PATH': Macro(
      _PATH, 'Checkpoint of the preference model.', 'it does not judge'
    ),
    'REWARD_MODEL_CHECKPOINT_PATH': Macro(
      _PATH, 'Checkpoint of the reward model.', 'it does not judge'
    ),
    'REFERENCE_LOG_PROBS': Macro(_PATH, 'File of log-probabilities, .npz.'),
    'OUTPUT_DIR': Macro(_PATH, 'Folder of a converted checkpoint, a new one.'),
    'OUTPUT_FORMAT': Macro(
      kinds.Text(choices=('orbax', 't5x', 't5x_orbax', 'hf', 'peft')),
      "Format of a converted checkpoint; 'peft' for adapters alone.",
    ),
    'STEP': Macro(_NATURAL, 'Step number of a converted checkpoint.'),
    'HF_SOURCE_PATH': Macro(
      _PATH,
      'Hugging Face directory whose tokenizer and configuration a converted '
      'checkpoint takes over.',
      'the checkpoint itself, if it is one',
    ),
    'CONTEXT_LENGTH': Macro(
      _COUNT,
      'Longest sequence of a converted decoder-only model, in tokens.',
      'that of HF_SOURCE_PATH',
    ),
  },
  'Model': {
    'MODEL': Macro(_MODEL, 'Network of policy and reference.'),
    'JUDGE_MODEL': Macro(_MODEL, 'Network of the judge.'),
    'DTYPE': Macro(
      kinds.Text(choices=('bfloat16', 'float16', 'float32')),
      'Type of the activations.',
    ),
    'SCAN_LAYERS': Macro(
      _FLAG, 'Whether layers are scanned (for TPUs) or unrolled (for CPUs).'
    ),
    'REMAT_POLICY': Macro(
      kinds.Text(choices=('none', 'minimal', 'full')),
      'What the backward pass computes again, to save memory.',
    ),
    'REWARD_HEAD': Macro(
      _NATURAL, "Outputs of the judge's additional head; 0: no such head."
    ),
    'BOS_ID': Macro(_NATURAL, 'Token before a prompt.', 'no such token'),
    'EOS_ID': Macro(
      kinds.Either((_NATURAL, kinds.Sequence(_NATURAL, what='ids'))),
      'Token at which the model stops; the first of several ends texts.',
      'not known',
    ),
    'LORA_RANK': Macro(_COUNT, 'Rank of the adapters.'),
    'LORA_ALPHA': Macro(
      _ABOVE_ZERO, 'Alpha / rank multiplies what the adapters add.'
    ),
    'LORA_TARGETS': Macro(
      kinds.Sequence(_TEXT, what='names of modules'),
      'Modules that have adapters.',
    ),
    'REFERENCE_SHARDING': Macro(
      _SHARDING, 'Mesh axis of each logical axis of the reference.', 'default'
    ),
    'JUDGE_SHARDING': Macro(
      _SHARDING, 'Mesh axis of each logical axis of the judge.', 'default'
    ),
  },
}
