"""A micro T5 and a comparison of its checkpoints, for the tests."""

import functools

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.evaluation import drawing
from ipo_md.evaluation import judge_agreement
from ipo_md.evaluation import side_by_side
from ipo_md.judges import host
from ipo_md.judges import learned as learned_lib
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.sampling import sampler as sampler_lib
from tasks.mini_tldr import tasks
from tasks.mini_tldr import truth as truth_lib

MODEL = model_lib.Model(
  functools.partial(
    t5.T5,
    vocab_size=tasks.VOCABULARY.vocab_size,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=16,
    mlp_activations=('gelu', 'linear'),
    logits_via_embedding=False,
    dropout_rate=0.0,
    scan=False,
    reward_head=True,
  )
)
EXAMPLES = 12
FORM = ('words', 'commas')


@functools.cache
def dataset(name, prompts_only):
  """Loads the validation split of a task."""
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': 74, 'targets': 36},
    split='validation',
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    prompts_only=prompts_only,
  )


@functools.cache
def learned_judge(path):
  """Makes a judge from a checkpoint."""
  return host.LearnedJudge(
    judge=functools.partial(learned_lib.likelihood, model=MODEL),
    model=MODEL,
    checkpoint_path=path,
    batch_size=8,
  )


def measure(prompts, completions):
  """Measures completions as texts."""
  scores = map(truth_lib.score, prompts, completions)
  return [
    {'facts_kept': s.kept, 'words': s.words, 'commas': text.count(',')}
    for s, text in zip(scores, completions, strict=True)
  ]


def compare(model_dir, paths, **changes):
  """Runs `side_by_side` with some arguments changed."""
  arguments = {
    'model_dir': str(model_dir),
    'seed': 0,
    'mesh_shape': (1, -1, 1),
    'model': MODEL,
    'policies': {n: paths[n] for n in ('supervised', 'ipo')},
    'reference_checkpoint_path': paths['supervised'],
    'prompts': drawing.Prompts(
      dataset=lambda: dataset('mini_tldr_prompts', True),
      examples=EXAMPLES,
      batch_size=8,
    ),
    'sampler': sampler_lib.Sampler(max_new_tokens=4, eos_id=1),
    'judges': {
      'ground_truth': host.TextJudge(truth_lib.preference),
      'reward_model': learned_judge(paths['judge']),
    },
    'measure': measure,
    'best_of': side_by_side.BestOf(
      n=3, policy='supervised', judge='reward_model'
    ),
    'agreement': judge_agreement.Agreement(
      truth='ground_truth',
      dataset=lambda: dataset('mini_tldr_pairs', False),
      facts=('facts_kept',),
      form=FORM,
    ),
  }
  side_by_side.side_by_side(**arguments | changes)
