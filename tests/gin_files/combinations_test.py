"""Tests combinations of a run, a model, a task, a judge and an algorithm.

The step of every combination in a pairwise covering set is traced. The
combinations in `INCOMPATIBLE` must raise an error that explains the conflict.
"""

from collections.abc import Iterable
import dataclasses
import itertools

import pytest

from ipo_md.sampling import mixture
from ipo_md.sampling import sequences
from tests.gin_files import gin_resolve

pytestmark = pytest.mark.slow

Choice = gin_resolve.Choice
without_data = gin_resolve.without_data
# One model of each kind of network. The others differ in sizes and details.
NETWORKS = ('t5_tiny', 'llama_3_2_1b')
# Tasks that differ from tldr, gsm8k or mini_tldr in files and metrics alone,
# and algorithms whose losses take what those of dpo, nca or nash_md take.
# runs_test.py traces each of them on a game.
ALIKE = (
  *('xsum', 'math_answers', 'code_problems', 'mini_tldr_cyclic', 'arithmetic'),
  *('xpo', 'simpo', 'apo_zero', 'apo_down', 'opo', 'opo_approx'),
  *('inpo', 'comal', 'sppo', 'rebel', 'egpo', 'best_response'),
)
REWARD_ALGORITHMS = [
  name
  for name in gin_resolve.files('algorithms')
  if gin_resolve.objective(name).feedback == 'rewards'
]


def is_valid(choice: Choice) -> bool:
  """Returns whether the parts are compatible."""
  rewards = choice.task.endswith(':rewards')
  own = choice.model.startswith('t5_') or choice.task != 'mini_tldr'
  if choice.run == 'supervised':
    return own and not choice.judge + choice.algorithm and not rewards
  if choice.run == 'judge':
    trains = choice.judge and gin_resolve.judge(choice.judge).trained_on
    return bool(own and trains and not choice.algorithm and not rewards)
  if not (own and choice.judge and choice.algorithm):
    return False
  objective = gin_resolve.objective(choice.algorithm)
  if choice.run == 'online':
    gives, loss = gin_resolve.judge(choice.judge).gives, objective
    # With K = 1, a judge that compares has no other completion.
    alone = 'matrix' in gives and loss.completions < 2
    unscored = 'rewards' not in gives or alone
    return not rewards and not (loss.feedback == 'rewards' and unscored)
  if objective.on_policy != 'none':
    return False
  return rewards == (objective.feedback == 'rewards')


def pairwise(choices: Iterable[Choice]):
  """Returns a small subset of `choices` that covers all pairs of parts.

  Two parts that occur together in one of the choices also occur together in one
  of the subset. The subset is chosen greedily.
  """
  numbers = {}

  def pairs(choice: Choice) -> int:
    parts = [
      part for part in enumerate(dataclasses.astuple(choice)[:5]) if part[1]
    ]
    bits = 0
    for pair in itertools.combinations(parts, 2):
      bits |= 1 << numbers.setdefault(pair, len(numbers))
    return bits

  open_ = [(pairs(choice), choice) for choice in choices]
  done, chosen = 0, []
  while True:
    bits, best = max(open_, key=lambda c: (c[0] & ~done).bit_count())
    if not bits & ~done:
      return chosen
    done |= bits
    chosen.append(best)


ALL = [
  Choice(*parts)
  for parts in itertools.product(
    ('online', 'offline', 'judge', 'supervised'),
    NETWORKS,
    [task for task in gin_resolve.TASKS if task not in ALIKE],
    ('', *gin_resolve.files('judges')),
    ('', *(a for a in gin_resolve.files('algorithms') if a not in ALIKE)),
  )
]
COVERING = pairwise(filter(is_valid, ALL))
# Every model and every judge size that the covering set leaves out. The model
# of a checkpoint needs one (tests/checkpoints/model_folder_test.py).
OTHERS = (
  [
    Choice('supervised', 'llama_3_2_1b', task)
    for task in ('math_answers', 'code_problems')
  ]
  + [
    Choice('supervised', model, 'tldr')
    for model in gin_resolve.files('models')
    if model not in ('from_checkpoint', *'+'.join(NETWORKS).split('+'))
    and not model.startswith('judge_')
  ]
  + [
    Choice('judge', f't5_1_1_base+{judge}', 'tldr', 'comparator')
    for judge in gin_resolve.files('models')
    if judge.startswith('judge_')
  ]
  + [
    Choice('online', model, 'tldr', 'reward_model', 'ipo_md')
    for model in ('t5_1_0_base', 'llama_3_2_1b', 'mixtral_8x7b')
  ]
  + [  # a judge of another size than the policy
    Choice('online', 't5_1_1_small+judge_t5_1_1_base', 'tldr', judge, algorithm)
    for judge, algorithm in (
      ('comparator', 'ipo_md'),
      ('pairwise_likelihood', 'nash_md'),
      ('reward_model', 'rl'),
    )
  ]
)
OWN_SAMPLES = 'needs samples of the policy.*gin/runs/online.gin'
INCOMPATIBLE = [
  # The vocabulary is that of another model.
  (
    Choice('supervised', 'llama_3_2_1b', 'tldr', vocabulary='t5_'),
    'EOS_ID 128001.* ends texts with 1.*VOCABULARY',
  ),
  (
    Choice('supervised', 'mistral_7b', 'tldr', vocabulary='t5_'),
    'has 32100 ids and the model 32000.*VOCABULARY',
  ),
  (
    Choice('supervised', 't5_tiny', 'tldr', vocabulary='t5_'),
    'has 32100 ids and the model 320 ',
  ),
  (
    Choice('online', 'mistral_7b', 'mini_tldr', 'likelihood', 'ipo'),
    'EOS_ID 2.* ends texts with 1.*MIXTURE_OR_TASK_NAME',
  ),
  # The run does not provide what the objective needs.
  *(
    (
      Choice('offline', 't5_tiny', 'mini_tldr', 'likelihood', algorithm),
      OWN_SAMPLES,
    )
    for algorithm in ('rl', 'nash_md', 'nash_ema')
  ),
  *(
    (
      Choice('offline', 't5_tiny', 'mini_tldr', 'likelihood', algorithm),
      f'^LOSS = {algorithm} needs rewards.*MIXTURE_OR_TASK_NAME',
    )
    for algorithm in ('nca', 'info_nca')
  ),
  *(
    (
      Choice('offline', 't5_tiny', task, 'likelihood', algorithm),
      f'^LOSS = {algorithm} needs preference.*MIXTURE_OR_TASK_NAME',
    )
    for task in ('ultrafeedback:rewards', 'preference_files:rewards')
    for algorithm in ('dpo', 'ipo', 'slic')
  ),
  *(
    (
      Choice('judge', 't5_tiny', 'ultrafeedback:rewards', judge),
      f'^{step} needs preference.*MIXTURE_OR_TASK_NAME',
    )
    for judge, step in (
      ('comparator', 'comparator_step'),
      ('reward_model', 'reward_step'),
      ('likelihood', 'reward_step'),
      ('pairwise_likelihood', 'reward_step'),
      ('preference_representation', 'reward_step'),
    )
  ),
  *(
    (
      Choice('online', 't5_tiny', 'mini_tldr', 'comparator', algorithm),
      '(A comparator compares.*MIXTURE_COEFS|needs rewards, but judge.*JUDGE)',
    )
    for algorithm in REWARD_ALGORITHMS
  ),
  *(
    (
      Choice(
        'online',
        't5_tiny',
        'mini_tldr',
        'comparator',
        algorithm,
        ('MIXTURE_COEFS = (0.0, 0.0)',),
      ),
      'needs rewards, but judge .* give only preference.*JUDGE',
    )
    for algorithm in REWARD_ALGORITHMS
  ),
  *(
    (
      Choice(
        'online',
        't5_tiny',
        'mini_tldr',
        'reward_model',
        algorithm,
        ('PER_TOKEN = True',),
      ),
      'PER_TOKEN = True with LOSS',
    )
    for algorithm in ('rl', 'nash_md', 'nash_ema')
  ),
  *(
    (
      Choice('online', 't5_tiny', 'mini_tldr', judge, 'rl'),
      'compares the K completions of a prompt, and K is 1: MIXTURE_COEFS',
    )
    for judge in ('preference_representation', 'pairwise_likelihood')
  ),
  *(
    (
      Choice(
        'judge',
        't5_tiny',
        'mini_tldr',
        judge,
        bindings=(f'REWARD_HEAD = {outputs}',),
      ),
      f'not {outputs} .REWARD_HEAD',
    )
    for judge, outputs in (
      ('preference_representation', 3),
      ('reward_model', 2),
    )
  ),
  # Completions or features are missing.
  (
    Choice(
      'online',
      't5_tiny',
      'mini_tldr',
      'reward_model',
      'ipo',
      ('MIXTURE_COEFS = (0.0, 0.0, 0.0)',),
    ),
    'preference|MIXTURE_COEFS',
  ),
  (
    Choice(
      'offline',
      't5_tiny',
      'ultrafeedback',
      'likelihood',
      'ipo',
      ("PREFERENCE_TASK = 'ultrafeedback_prompts'",),
    ),
    "ultrafeedback_prompts has no feature 'targets'.*MIXTURE_OR_TASK_NAME",
  ),
  (
    Choice('online', 'llama_3_2_1b', 'code_problems', 'likelihood', 'ipo'),
    'Task code_problems has .*test',
  ),
]


@pytest.fixture(autouse=True)
def one_width(monkeypatch):
  """Traces each step at one width; papers_test.py traces all of them."""
  monkeypatch.setattr(sequences, 'LEAST_WIDTH', 2**20)
  monkeypatch.setattr(mixture, 'MAX_CACHE_WIDTHS', 1)


@pytest.mark.parametrize('choice', COVERING, ids=str)
def test_covering_set_traces(choice):
  gin_resolve.trace(gin_resolve.resolve(choice))


@pytest.mark.parametrize('choice', OTHERS, ids=str)
def test_other_models_trace(choice):
  gin_resolve.trace(gin_resolve.resolve(choice))


@pytest.mark.parametrize(
  ('choice', 'message'), INCOMPATIBLE, ids=lambda x: str(x)[:60]
)
def test_incompatible_parts_raise(choice, message):
  with pytest.raises(ValueError, match=f'(?s){message}'):
    gin_resolve.trace(gin_resolve.resolve(choice))


def test_covering_set_covers_all_pairs():
  """The set contains every pair of parts of a valid combination."""
  pairs = lambda choices: {
    pair
    for choice in choices
    for pair in itertools.combinations(
      enumerate(dataclasses.astuple(choice)[:5]), 2
    )
    if pair[0][1] and pair[1][1]
  }
  assert pairs(COVERING) >= pairs(filter(is_valid, ALL))
