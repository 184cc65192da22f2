"""Macros of data, algorithms, judges and comparisons (see `macros`)."""

from collections.abc import Mapping

from ipo_md.core import macro_kinds as kinds

Macro = kinds.Macro

_COUNT = kinds.Number(whole=True, low=1)
_NATURAL = kinds.Number(whole=True, low=0)
_ABOVE_ZERO = kinds.Number(low=0, above=True)
_AT_LEAST_ZERO = kinds.Number(low=0)
_SHARE = kinds.Number(low=0, high=1)
_FLAG = kinds.Flag()
_TEXT = kinds.Text()
_OF_PAIRS = kinds.Text(fields=('text', 'first', 'second'))
_PATH = kinds.Text('a path')
_ROWS = kinds.Either((kinds.Text('a path of files'), kinds.Mixture()))
_SPLIT = kinds.Text("a split such as 'test' or 'test[:1000]'")
_TASK = kinds.Either(
  (
    kinds.Text('the name of a task'),
    kinds.Reference('a task', '@preference_files.pairs()', made=True),
  )
)

GROUPS: Mapping[str, Mapping[str, Macro]] = {
  'Data': {
    'MIXTURE_OR_TASK_MODULE': Macro(
      kinds.Either(
        (
          kinds.Text('the name of a module'),
          kinds.Sequence(_TEXT, what='names of modules'),
        )
      ),
      'Python modules that register the tasks.',
      'none is imported',
    ),
    'MIXTURE_OR_TASK_NAME': Macro(
      _TASK, 'Task or mixture of the run; run files bind one of the next three.'
    ),
    'SUPERVISED_TASK': Macro(_TASK, 'Task of prompts and targets.'),
    'PREFERENCE_TASK': Macro(_TASK, 'Task of pairs or of scored completions.'),
    'PROMPT_TASK': Macro(_TASK, 'Task of prompts.', 'PROMPTS_FILE is read'),
    'TASK_FEATURE_LENGTHS': Macro(
      kinds.Dictionary('feature', _COUNT, "{'inputs': 512, 'targets': 128}"),
      'Longest prompts and completions of the data, in tokens.',
    ),
    'VOCABULARY': Macro(
      kinds.Reference(
        'a vocabulary',
        '@data.tokenizer_vocabulary() or @seqio.SentencePieceVocabulary() in '
        'an overlay (docs/bring_your_own.md)',
        made=True,
      ),
      'Vocabulary of the model.',
      "the task's",
    ),
    'TOKENIZER_PATH': Macro(_PATH, 'tokenizer.json of a model.'),
    'CHAT_TEMPLATE': Macro(
      _PATH,
      'Folder or file of a tokenizer with a chat template, or the file of a '
      'template.',
      'prefix and suffix are the format',
    ),
    'CHAT_DATE': Macro(
      kinds.Text("a date such as '2026-01-31'"),
      "Date that a chat template sees as today's.",
      'the real one',
    ),
    'CACHE_DIR': Macro(_PATH, 'Folder of tokenised examples.', 'no cache'),
    'TRAIN_SPLIT': Macro(_SPLIT, 'Split, or a range of it, for training.'),
    'SPLIT': Macro(_SPLIT, 'Split that preview shows.'),
    'EVAL_SPLIT': Macro(_SPLIT, 'Split of evaluations during training.'),
    'HELD_OUT_SPLIT': Macro(_SPLIT, 'Split of comparisons and judge accuracy.'),
    'INFER_SPLIT': Macro(_SPLIT, 'Split whose prompts infer completes.'),
    'PROMPTS_FILE': Macro(
      _PATH, 'File of prompts that infer completes.', 'PROMPT_TASK is read'
    ),
    'EXAMPLES': Macro(_NATURAL, 'Examples of each task that preview prints.'),
    'PROMPTS_ONLY': Macro(_FLAG, 'Whether preview reads prompts alone.'),
    'TRAIN_FILE': Macro(_ROWS, 'Your preference files for training.'),
    'VALIDATION_FILE': Macro(_ROWS, 'Your preference files for evaluation.'),
    'PREFERENCE_FILES': Macro(
      kinds.Dictionary('split', _ROWS, "{'train': 'a.jsonl'}"),
      'Your preference files of each split.',
    ),
    'COLUMNS': Macro(
      kinds.Dictionary('field', None, "{'prompt': 'question'}"),
      'Names of fields in your files that differ from those that are read.',
      'none differs',
    ),
    'MAX_BAD_ROWS': Macro(_NATURAL, 'Rows of a file that may be left out.'),
    'MAX_COMPLETIONS': Macro(
      kinds.Number(whole=True, low=2), 'Completions of the longest row.'
    ),
  },
  'Algorithm': {
    'LOSS': Macro(kinds.Reference('a loss', '@losses.ipo'), 'Objective.'),
    'TAU': Macro(_ABOVE_ZERO, 'Weight of the divergence from the reference.'),
    'BETA': Macro(
      _ABOVE_ZERO, 'Scale of the log-ratios, of objectives without TAU.'
    ),
    'ETA': Macro(
      _ABOVE_ZERO,
      'Inverse step size (INPO) or step size (SPPO, REBEL) of an iteration.',
    ),
    'ALPHA': Macro(
      _AT_LEAST_ZERO,
      'Temperature of the rewards (NCA, InfoNCA), 0 for one-hot labels; weight '
      'of the exploration (XPO); steepness of the ranks (OPO with ApproxNDCG).',
    ),
    'MIXTURE_COEFS': Macro(
      kinds.Sequence(_SHARE, what='weights'),
      'Weight of PLAYER for each of the K completions of a prompt.',
    ),
    'PLAYER': Macro(
      kinds.Text(choices=('reference', 'average', 'snapshot')),
      'The policy that MIXTURE_COEFS weigh.',
    ),
    'SNAPSHOT_STEPS': Macro(
      _COUNT,
      'Updates between two snapshots of the policy (INPO, SPPO, REBEL).',
      'no snapshot',
    ),
    'REFERENCE_STEPS': Macro(
      _COUNT,
      'Updates after which the policy becomes the reference (COMAL).',
      'the reference stays',
    ),
    'EMA_DECAY': Macro(
      _SHARE,
      'Decay of the moving average of the policy (Nash-EMA).',
      'no average',
    ),
    'PER_TOKEN': Macro(_FLAG, 'Whether log-ratios are means over tokens.'),
    'TRUNCATION_REWARD': Macro(
      kinds.Number(), 'Reward of a completion without EOS.', "the judge's"
    ),
    'LABEL': Macro(
      kinds.Reference('a function', '@losses.hard_label'),
      "What becomes of the judge's preference.",
      'it is the label as it is',
    ),
  },
  'Sampling': {
    'MAX_NEW_TOKENS': Macro(_COUNT, 'Longest completion, in tokens.'),
    'TEMPERATURE': Macro(_AT_LEAST_ZERO, 'Temperature; 0: greedy.'),
    'TOP_K': Macro(_NATURAL, 'Likeliest tokens that are kept; 0: all.'),
    'TOP_P': Macro(
      kinds.Number(low=0, above=True, high=1),
      'Share of probability that is kept; 1: all.',
    ),
    'INT8_SAMPLING': Macro(_FLAG, 'Whether int8 weights are sampled with.'),
  },
  'Judges': {
    'JUDGE': Macro(
      kinds.Reference('a judge', '@judges.comparator'), 'Judge.', 'no judge'
    ),
    'JUDGE_STEP': Macro(
      kinds.Reference('a step', '@algorithms.reward_step'),
      'Step that trains the judge.',
      'it is not trained',
    ),
    'JUDGES': Macro(
      kinds.Dictionary(
        'name',
        kinds.Reference('a judge', '%JUDGE', made=True),
        "{'rater': %JUDGE}",
      ),
      'Judges of a comparison.',
    ),
    'JUDGE_LENGTH': Macro(_COUNT, 'Longest text of a judge, in tokens.'),
    'JUDGE_ANSWERS': Macro(
      kinds.Sequence(_TEXT, 2, 2, 'texts'),
      'Answers of a comparator for the first and the second completion.',
    ),
    'REWARD_PROMPT': Macro(
      kinds.Text(fields=('text', 'first')), 'Prompt of a reward model.'
    ),
    'COMPARATOR_PROMPT': Macro(_OF_PAIRS, 'Prompt of a comparator.'),
    'JUDGE_TEXT': Macro(
      kinds.Text(fields=('text', 'first')),
      'Text of a prompt with a completion, for a judge that has its own '
      'tokenizer.',
      'its chat template',
    ),
    'JUDGE_MAX_LENGTH': Macro(
      _COUNT, 'Longest text of a judge that has its own tokenizer, in tokens.'
    ),
    'JUDGE_BATCH_SIZE': Macro(
      _COUNT, 'Prompts at a time of a judge that has its own tokenizer.'
    ),
    'JUDGE_DTYPE': Macro(
      kinds.Text(choices=('bfloat16', 'float16', 'float32')),
      'Type of the activations of such a judge.',
    ),
    'JUDGE_SCAN_LAYERS': Macro(
      _FLAG, 'Whether the layers of such a judge are scanned.'
    ),
    'FUNCTION': Macro(
      kinds.Reference('a function', '@my_judges.shorter'),
      'Function of prompts and completions that judges.',
    ),
    'REWARD_JUDGES': Macro(
      kinds.Dictionary(
        'name',
        kinds.Reference('a judge', '@judges.RewardFunction()', made=True),
        "{'short': @judges.RewardFunction()}",
      ),
      'Judges whose rewards are added.',
    ),
    'REWARD_WEIGHTS': Macro(
      kinds.Dictionary('name', kinds.Number(), "{'short': 0.5}"),
      'Weight of each of them.',
    ),
    'REWARD_SCALES': Macro(
      kinds.Dictionary(
        'name',
        kinds.Sequence(kinds.Number(), 2, 2, 'numbers'),
        "{'short': (-20.0, 8.0)}",
        empty=True,
      ),
      'Mean and standard deviation of their rewards.',
      'rewards are added as they are',
    ),
    'BASE_URL': Macro(kinds.Text('an address'), 'Address of an HTTP judge.'),
    'RATER': Macro(_TEXT, "The server's name of an HTTP judge."),
    'RATER_CACHE': Macro(_PATH, 'File that stores the answers.'),
    'RATER_PROMPT': Macro(
      _TEXT, 'Prompt of an HTTP judge, with {text}, {first} and {second}.'
    ),
    'RATER_PARAMETERS': Macro(
      kinds.Dictionary('name', None, "{'temperature': 0}", empty=True),
      'Further fields of a request.',
    ),
    'API_KEY_VARIABLE': Macro(
      kinds.Text('the name of an environment variable'),
      'Variable that holds the key.',
      'no key is needed',
    ),
    'NEITHER': Macro(
      kinds.Text(choices=('error', 'tie')),
      'What becomes of answers other than 1 and 2.',
    ),
    'PRICES': Macro(
      kinds.Sequence(_AT_LEAST_ZERO, 2, 2, 'prices'),
      'Prices of a million tokens in prompts and in answers.',
      'no costs are reported',
    ),
    'CONCURRENCY': Macro(_COUNT, 'Requests at a time.'),
    'TIMEOUT': Macro(_ABOVE_ZERO, 'Seconds that a response may take.'),
    'ATTEMPTS': Macro(_COUNT, 'Attempts at a question before the run stops.'),
  },
  'Comparisons': {
    'POLICIES': Macro(
      kinds.Dictionary(
        'name',
        kinds.Either((_PATH, kinds.Sequence(_PATH, what='paths'))),
        "{'supervised': '/runs/a', 'ipo': '/runs/b'}",
      ),
      'Checkpoints or infer runs that are compared; lists are seeds of one '
      'policy, and the first policy is the baseline.',
    ),
    'COMPARED': Macro(
      kinds.Text(choices=('all', 'baseline')),
      'Which pairs of policies are judged.',
    ),
    'MEASURE': Macro(
      kinds.Reference('a function', '@truth.measures'),
      'Further measures of completions.',
      'none',
    ),
    'BEST_OF': Macro(
      kinds.Reference('a row', '@side_by_side.BestOf()', made=True),
      'Row of the best of n samples of a policy.',
      'no such row',
    ),
    'AGREEMENT': Macro(
      kinds.Reference('settings', '@judge_agreement.Agreement()', made=True),
      'Agreement of the judges with a ground truth.',
      'not measured',
    ),
  },
  'Games': {
    'GAME': Macro(
      kinds.Reference('a game', '@game.cyclic()', made=True),
      'Game that is played.',
    ),
    'STARTS': Macro(_COUNT, 'Policies that are trained side by side.'),
  },
  'Compilation': {
    'TOPOLOGY': Macro(
      kinds.Text("a TPU slice such as 'v5e:4x4'"), 'Slice to compile for.'
    ),
    'NUM_SLICES': Macro(_COUNT, 'Number of slices.'),
    'FIT': Macro(
      kinds.Text(choices=('batch', 'slice')),
      'What is searched: the largest batch or the smallest slice.',
      'the run as it is',
    ),
    'PRINT_SHARDINGS': Macro(_FLAG, 'Whether shardings are printed.'),
    'NUM_COMPLETIONS': Macro(
      _COUNT, 'Completions of a prompt in a data set of rewards.'
    ),
  },
}
