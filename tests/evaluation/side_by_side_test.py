"""Side by side on a micro T5: numbers by hand, seams, the whole run twice."""

import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.checkpoints import load
from ipo_md.checkpoints import manager
from ipo_md.core import part_store
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.evaluation import diagnostics
from ipo_md.evaluation import drawing
from ipo_md.evaluation import judge_agreement
from ipo_md.evaluation import results
from ipo_md.evaluation import side_by_side
from ipo_md.evaluation import statistics
from ipo_md.evaluation import task_metrics
from ipo_md.judges import host
from ipo_md.judges import learned as learned_lib
from ipo_md.judges import samples as samples_lib
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.sampling import sampler as sampler_lib
from ipo_md.sampling import sequences
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
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': 74, 'targets': 36},
    split='validation',
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    prompts_only=prompts_only,
  )


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  """Two policies and a judge, random."""
  found = {}
  for seed, name in enumerate(['supervised', 'ipo', 'judge']):
    found[name] = str(tmp_path_factory.mktemp(name))
    params = MODEL.init(jax.random.key(seed))
    state = types.TrainState(step=jnp.int32(1), params=params, opt_state=())
    with manager.open_manager(found[name], keep=manager.Keep()) as saved:
      manager.save(saved, state, tasks.VOCABULARY)
      manager.wait(saved)
  return found


@functools.cache
def learned_judge(path):
  return host.LearnedJudge(
    judge=functools.partial(learned_lib.likelihood, model=MODEL),
    model=MODEL,
    checkpoint_path=path,
    batch_size=8,
  )


def measure(prompts, completions):
  scores = map(truth_lib.score, prompts, completions)
  return [
    {'facts_kept': s.kept, 'words': s.words, 'commas': text.count(',')}
    for s, text in zip(scores, completions, strict=True)
  ]


def compare(model_dir, paths, **changes):
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


def test_a_run_gives_the_same_bytes_twice(tmp_path, paths, capsys):
  compare(tmp_path / 'a', paths)
  compare(tmp_path / 'b', paths)
  for name in ('results.json', 'completions.jsonl', 'index.html'):
    first = (tmp_path / 'a' / name).read_bytes()
    assert first == (tmp_path / 'b' / name).read_bytes()
    assert str(tmp_path).encode() not in first

  found = json.loads((tmp_path / 'a' / 'results.json').read_text())
  assert found['policies'] == ['supervised', 'best_of_3', 'ipo']
  assert found['judges'] == ['ground_truth', 'reward_model']
  assert found['prompts'] == EXAMPLES
  for judge in found['judges']:
    rates = np.array(found['win_rate'][judge])
    np.testing.assert_allclose(rates + rates.T, 1, atol=2e-6)
    low, high = np.moveaxis(np.array(found['interval'][judge]), -1, 0)
    assert np.all((low <= rates) & (rates <= high))
  # The policy that is the reference has no KL; best of 3 has its bound.
  assert abs(found['kl']['supervised']) < 1e-4
  assert found['kl']['ipo'] > 1
  assert found['kl']['best_of_3'] == round(math.log(3) - 2 / 3, 6)
  assert 0 < found['length']['ipo'] <= 4
  assert found['paired_difference']['words'].keys() == {'best_of_3', 'ipo'}
  agreed = found['agreement']
  assert agreed['held_out_pairs']['reward_model'][3] == EXAMPLES
  assert agreed['samples_of_ipo'].keys() == {'reward_model', 'blind'}
  for kind in ('calibration', 'by_length', 'order_consistency'):
    assert found[kind].keys() == agreed.keys()
    assert found[kind]['samples_of_ipo'].keys() == {'reward_model', 'blind'}

  # The lines hold what the table was made of.
  lines = (tmp_path / 'a' / 'completions.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  p = np.array([line['preference']['reward_model'][1] for line in lines])
  rate = np.mean((p > 0.5) + (p == 0.5) / 2)
  assert abs(rate - found['win_rate']['reward_model'][0][2]) < 1e-6
  for line in lines:
    text = line['completions']['ipo']
    score = truth_lib.score(line['prompt'], text['text'])
    assert text['score']['words'] == score.words

  compare(tmp_path / 'a', paths)
  assert 'complete' in capsys.readouterr().out


def test_kl_is_over_plain_samples(tmp_path, paths):
  greedy = sampler_lib.Sampler(max_new_tokens=4, eos_id=1, temperature=0.0)
  plain = {'best_of': None, 'agreement': None}
  compare(tmp_path / 'a', paths, **plain)
  compare(tmp_path / 'b', paths, **plain, sampler=greedy)
  a, b = (json.loads((tmp_path / x / 'results.json').read_text()) for x in 'ab')
  assert a['kl'] == b['kl']
  assert a['entropy'] == b['entropy']
  assert a['words'] != b['words']


def test_policies_do_not_share_noise(tmp_path, paths):
  parts = part_store.Folder(str(tmp_path))
  mesh = sharding.make_mesh((1, -1, 1))
  prompts = drawing.Prompts(
    dataset=lambda: dataset('mini_tldr_prompts', True),
    examples=EXAMPLES,
    batch_size=8,
  )
  sampler = sampler_lib.Sampler(max_new_tokens=4, eos_id=1)
  with jax.set_mesh(mesh):
    draw = drawing.drawer(
      MODEL, prompts, prompts.load(), paths['supervised'], 0, parts
    )
    one, again, other = (
      draw(name, paths['ipo'], sampler, k=2) for name in ('a', 'a', 'b')
    )
  assert one.samples.texts == again.samples.texts
  assert one.samples.texts != other.samples.texts
  # The log-probabilities are those that the models give when they read.
  tokens = one.samples.tokens
  for path, expected in (
    (paths['ipo'], one.log_prob),
    (paths['supervised'], one.log_prob - one.log_ratio),
  ):
    params = load.load_params(
      path, MODEL, sharding.make_mesh((1, -1, 1)), name=''
    )
    found, _ = jax.jit(functools.partial(sequences.log_probs, MODEL))(
      params, tokens
    )
    np.testing.assert_allclose(found.sum(-1), expected, rtol=1e-5)


@pytest.fixture(scope='module')
def samples():
  rows = dataset('mini_tldr_pairs', False).rows([(0, n) for n in range(11)])
  return samples_lib.Samples.of(
    rows.completions, dataset('mini_tldr_pairs', False)
  )


def test_samples_as_text(samples):
  examples = truth_lib.score(samples.prompts[0], samples.texts[0][0])
  assert examples.words == len(samples.texts[0][0].split())
  both = samples_lib.Samples.concatenate([samples, samples])
  swapped = both.take(np.tile([1, 2], (11, 1)))
  assert swapped.texts[3] == [samples.texts[3][1], samples.texts[3][0]]
  np.testing.assert_array_equal(
    swapped.tokens.completions.ids[:, 0], samples.tokens.completions.ids[:, 1]
  )


def test_text_judge_is_the_ground_truth(samples):
  judge = host.TextJudge(truth_lib.preference)
  rows = dataset('mini_tldr_pairs', False).rows([(0, n) for n in range(11)])
  found = host.preference(judge, samples, [(0, 1), (1, 0)])
  np.testing.assert_array_equal(found[:, 0], rows.preference)
  np.testing.assert_array_equal(found[:, 1], 1 - rows.preference)


def ask(judge, samples, pairs):
  return np.stack(list(judge(samples, pairs)), axis=1)


def by_pairs(params, completions):
  """The likelihood judge as one that gives no rewards."""
  judged = learned_lib.likelihood(params, completions, model=MODEL)
  return judged.replace(rewards=None)


def test_learned_judges_by_completion_and_by_pair(samples, paths):
  three = samples_lib.Samples.concatenate([samples, samples]).take(
    np.tile([0, 1, 2], (11, 1))
  )
  pairs = [(0, 1), (1, 2), (2, 0)]
  with jax.set_mesh(sharding.make_mesh((1, -1, 1))):
    found = ask(learned_judge(paths['judge']), three, pairs)
    other = host.LearnedJudge(
      judge=by_pairs,
      model=MODEL,
      checkpoint_path=paths['judge'],
      batch_size=8,
    )
    other = ask(other, three, pairs)
    chosen = host.best_of(learned_judge(paths['judge']), three)
  params = load.load_params(
    paths['judge'], MODEL, sharding.make_mesh((1, -1, 1)), name=''
  )
  judged = jax.jit(by_pairs)(params, samples.tokens)
  np.testing.assert_allclose(found[:, 0, 0], judged.preference, atol=1e-5)
  np.testing.assert_allclose(found[:, 1], 1 - found[:, 0], atol=1e-6)
  np.testing.assert_allclose(found[:, 2], 0.5, atol=1e-6)
  np.testing.assert_allclose(other, found, atol=1e-5)
  np.testing.assert_array_equal(chosen, found[:, 0, 0] < 0.5)


def test_matrices_by_hand():
  judged = {'truth': np.array([[1, 0.5, 0], [1, 0.5, 1], [0, 0.5, 1.0]])}
  lengths = {n: np.array([i, 2 * i, 3]) for i, n in enumerate('abc')}
  found = results.matrices(list('abc'), results.pairs(3), judged, lengths)
  np.testing.assert_allclose(
    found['win_rate']['truth'],
    [[1 / 2, 2 / 3, 1 / 2], [1 / 3, 1 / 2, 2 / 3], [1 / 2, 1 / 3, 1 / 2]],
  )
  low, high = found['interval']['truth'][0][1]
  np.testing.assert_allclose(
    found['interval']['truth'][1][0], [1 - high, 1 - low]
  )
  assert low < 2 / 3 < high


def test_measures_by_hand():
  scores = {'a': [{'kept': 1}, {'kept': 2}], 'b': [{'kept': 2}, {'kept': 5}]}
  found = results.measures(['a', 'b'], scores)
  assert found['kept'] == {'a': 1.5, 'b': 3.5}
  assert found['paired_difference']['kept']['b'][0] == 2


def test_blind_judge_sees_its_features_alone():
  rng = np.random.default_rng(0)
  words = rng.integers(0, 9, (200, 2))
  kept = rng.integers(0, 3, (200, 2))
  scores = [
    [{'words': w, 'kept': k} for w, k in zip(*row, strict=True)]
    for row in zip(words, kept, strict=True)
  ]
  by_words = (1 + np.sign(words[:, 1] - words[:, 0])) / 2
  by_kept = (1 + np.sign(kept[:, 0] - kept[:, 1])) / 2
  seen = judge_agreement.blind_preference(scores, by_words, ['words'])
  decided = by_words != 0.5
  assert np.all((seen > 0.5)[decided] == (by_words > 0.5)[decided])
  unseen = judge_agreement.blind_preference(scores, by_kept, ['words'])
  assert 0.3 < np.mean((unseen > 0.5) == (by_kept > 0.5)) < 0.65


def test_bad_configurations(tmp_path, paths):
  best = functools.partial(side_by_side.BestOf, n=3)
  for changes, message in (
    ({'judges': {}}, 'JUDGES'),
    ({'best_of': best(policy='rl', judge='reward_model')}, "BestOf.*'rl'"),
    (
      {
        'best_of': best(policy='ipo', judge='ground_truth'),
        'policies': {'ipo': paths['ipo'], 'best_of_3': paths['ipo']},
      },
      'best_of_3',
    ),
    (
      {
        'policies': {'supervised': paths['ipo'], 'a[0]': 'x', 'a': ['y']},
      },
      r'name a\[0\] twice',
    ),
    ({'policies': {'supervised': paths['ipo'], 'a': []}}, 'POLICIES'),
    ({'compared': 'some'}, "COMPARED = 'some'"),
    (
      {
        'prompts': drawing.Prompts(
          dataset=lambda: dataset('mini_tldr_prompts', True),
          examples=0,
          batch_size=8,
        )
      },
      'EVAL_EXAMPLES 0',
    ),
    ({'policies': {'supervised': '/nowhere'}}, r"POLICIES\['supervised'\]"),
  ):
    with pytest.raises(ValueError, match=message):
      compare(tmp_path, paths, **changes)


class Stop(Exception):
  """In place of a kill."""


def test_an_interrupted_run_does_nothing_twice(tmp_path, paths, monkeypatch):
  plain = {'best_of': None, 'agreement': None}
  calls = {'sample': 0, 'judge': 0}
  limits = {'sample': 3, 'judge': 100}

  def counted(name, function):
    def call(*args, **kwargs):
      if calls[name] == limits[name]:
        raise Stop
      calls[name] += 1
      return function(*args, **kwargs)

    return call

  monkeypatch.setattr(drawing, '_sample', counted('sample', drawing._sample))
  truth = counted('judge', truth_lib.preference)
  # Each pair of three policies takes 24 calls: 12 prompts in 2 orders.
  arguments = plain | {
    'policies': {n: paths[n] for n in ('supervised', 'ipo', 'judge')},
    'judges': {'ground_truth': host.TextJudge(truth)},
  }
  with pytest.raises(Stop):  # in the second policy's second batch
    compare(tmp_path / 'a', paths, **arguments)
  limits['sample'] = 100
  with pytest.raises(Stop):  # in the first pair
    limits['judge'] = 10
    compare(tmp_path / 'a', paths, **arguments)
  calls['judge'] = 0
  with pytest.raises(Stop):  # in the second pair
    limits['judge'] = 30
    compare(tmp_path / 'a', paths, **arguments)
  limits['judge'] = 100
  assert not (tmp_path / 'a' / 'results.json').exists()
  compare(tmp_path / 'a', paths, **arguments)
  assert calls == {'sample': 3 + 4, 'judge': 30 + 48}
  limits['judge'] = 1000
  compare(tmp_path / 'b', paths, **arguments)
  for name in ('results.json', 'completions.jsonl', 'index.html'):
    first = (tmp_path / 'a' / name).read_bytes()
    assert first == (tmp_path / 'b' / name).read_bytes()
  kept_files = [p.name for p in (tmp_path / 'a').glob('*/*.jsonl')]
  assert len(kept_files) == 3 + 3
  assert not list((tmp_path / 'a').glob('**/*.partial'))


def test_parts_of_another_recipe_are_not_found(tmp_path):
  parts = part_store.Folder(str(tmp_path))
  parts.put('samples', '../a b/ü"', {'seed': 0}, [{'p': math.nan}, {'p': 0.1}])
  (row, other) = parts.get('samples', '../a b/ü"', {'seed': 0})
  assert math.isnan(row['p'])
  assert other == {'p': 0.1}
  assert parts.get('samples', '../a b/ü"', {'seed': 1}) is None
  assert [p.parent.name for p in tmp_path.rglob('*.jsonl')] == ['samples']


def test_another_checkpoint_at_the_same_path_is_told_apart(paths, tmp_path):
  state = types.TrainState(
    step=jnp.int32(1), params=MODEL.init(jax.random.key(9)), opt_state=()
  )
  found = []
  for _ in range(2):
    with manager.open_manager(
      str(tmp_path / 'run'), keep=manager.Keep()
    ) as saved:
      manager.save(saved, state, tasks.VOCABULARY)
      manager.wait(saved)
    found.append(load.identity(str(tmp_path / 'run'), ''))
    shutil.rmtree(tmp_path / 'run')
  assert found[0] != found[1]
  assert load.identity(paths['ipo'], '') == load.identity(paths['ipo'], '')


def test_seeds_against_the_baseline(tmp_path, paths):
  three = ('supervised', 'ipo', 'judge')
  compare(
    tmp_path,
    paths,
    policies={'supervised': paths['ipo'], 'ipo': [paths[n] for n in three]},
    judges={'ground_truth': host.TextJudge(truth_lib.preference)},
    compared='baseline',
    best_of=None,
    agreement=None,
  )
  found = json.loads((tmp_path / 'results.json').read_text())
  names = ['supervised', 'ipo[0]', 'ipo[1]', 'ipo[2]']
  assert found['policies'] == names
  rates = found['win_rate']['ground_truth']
  assert rates[1][2] is None
  assert found['interval']['ground_truth'][1][2] == [None, None]
  assert rates[1][1] == 0.5
  assert found['compared_order_consistency']['ground_truth'][0] == 1
  assert 'nash_averaging' not in found
  ours, theirs = found['seeds']['ground_truth']
  assert (ours['policy'], ours['over']) == ('supervised', 'ipo')
  assert ours['win_rates'] == [rates[0][1:]]
  np.testing.assert_allclose(theirs['mean'], 1 - ours['mean'], atol=2e-6)
  low, high = theirs['t_interval_over_seed_means']
  expected = statistics.t_interval(np.ravel(theirs['win_rates']))
  np.testing.assert_allclose([low, high], expected[1:], atol=1e-5)
  line = json.loads((tmp_path / 'completions.jsonl').open().readline())
  assert [p is None for p in line['preference']['ground_truth']] == [
    pair not in ((0, 1), (0, 2), (0, 3)) for pair in results.pairs(4)
  ]


def minds_order(samples, pairs):
  """Knows no winner of prompt 0, and likes what is shown first elsewhere."""
  for _ in pairs:
    found = np.tile([0.7, 0.4], (EXAMPLES, 1))
    found[0] = math.nan
    yield found


def test_orders_neither_and_task_metrics(tmp_path, paths):
  compare(
    tmp_path,
    paths,
    judges={'shown_first': minds_order},
    task_metrics=functools.partial(
      task_metrics.of_task, mixture_or_task_name='mini_tldr_prompts'
    ),
    best_of=None,
    agreement=None,
  )
  found = json.loads((tmp_path / 'results.json').read_text())
  assert found['neither'] == {'shown_first': 2}
  share, low, high, count = found['compared_order_consistency']['shown_first']
  assert count == EXAMPLES
  assert share == round(0.5 / EXAMPLES, 6)
  assert low < share < high
  assert 0 <= found['rouge1']['ipo'] <= 100
  assert found['paired_difference']['rouge2'].keys() == {'ipo'}
  assert 0 < found['distinct_1']['ipo'] <= 1
  assert found['nash_averaging']['shown_first']['weights']['ipo'] < 1e-6
  lines = (tmp_path / 'completions.jsonl').read_text().splitlines()
  first, second = (json.loads(line) for line in lines[:2])
  assert first['preference']['shown_first'] == [0.5]
  assert first['orders']['shown_first'] == [[None, None]]
  assert second['preference']['shown_first'] == [0.55]
  assert second['orders']['shown_first'] == [[0.7, 0.4]]


@pytest.fixture(name='inferred')
def inferred_fixture(tmp_path):
  """What gin/runs/infer.gin writes, of prompts in other spaces and cases."""
  prompts = dataset('mini_tldr_prompts', True)
  folder = tmp_path / 'inferred'
  folder.mkdir()
  with (folder / 'completions.jsonl').open('w') as file:
    for task, row in dataset_lib.first_rows(prompts, EXAMPLES):
      ids = prompts.examples[task].prompts.row(row).tolist()
      text = tasks.VOCABULARY.decode(ids).upper().replace(' ', '\n')
      completion = {'text': f'so {row}', 'tokens': 3, 'ended': True}
      line = {'index': row, 'prompt': text, 'completions': [completion]}
      file.write(json.dumps(line) + '\n')
  return folder


def test_texts_of_another_vocabulary(tmp_path, paths, inferred):
  arguments = {
    'policies': {'supervised': paths['supervised'], 'other': str(inferred)},
    'judges': {'ground_truth': host.TextJudge(truth_lib.preference)},
    'best_of': None,
    'agreement': None,
  }
  compare(tmp_path / 'out', paths, **arguments)
  found = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert found['length']['other'] == 2
  assert found['kl'].keys() == {'supervised'}
  line = json.loads((tmp_path / 'out' / 'completions.jsonl').open().readline())
  assert line['completions']['other']['text'] == 'so 0'
  learned = {'judges': {'reward_model': learned_judge(paths['judge'])}}
  with pytest.raises(ValueError, match="'reward_model'.*'other'.*vocabulary"):
    compare(tmp_path / 'b', paths, **arguments | learned)
  path = inferred / 'completions.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  for broken, message in (
    (lines[1:] + lines[:1], r"POLICIES\['other'\].*prompt 0 is .*, and here "),
    (lines[:-1], 'completions of 11 prompts; EVAL_EXAMPLES is 12'),
    (['{"prompt": 1}\n', *lines[1:]], r'line 1 of .*infer.gin'),
  ):
    path.write_text(''.join(broken))
    with pytest.raises(ValueError, match=message):
      compare(tmp_path / 'c', paths, **arguments)


def test_texts_alone_and_a_lone_policy(tmp_path, paths, inferred):
  compare(
    tmp_path / 'out',
    paths,
    policies={'other': str(inferred)},
    reference_checkpoint_path=None,
    judges={'ground_truth': host.TextJudge(truth_lib.preference)},
    best_of=None,
    agreement=None,
  )
  found = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert found['win_rate'] == {'ground_truth': [[0.5]]}
  assert found['kl'] == {}


def test_distinct_by_hand():
  found = diagnostics.distinct(
    {'a': ['the cat the cat', 'the dog'], 'b': ['x']}
  )
  assert found['distinct_1']['a'] == 3 / 6
  assert found['distinct_2']['a'] == 3 / 4
  assert found['distinct_3'] == {'a': 1.0, 'b': None}


def test_nash_averaging_of_degenerate_win_rates():
  for rates in (
    np.full((5, 5), 0.5),
    np.array([[0.5, 1.0], [0.0, 0.5]]),
    np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]),
  ):
    names = list('abcde')[: len(rates)]
    found = diagnostics.nash_averaging(names, {'judge': rates.tolist()})[
      'judge'
    ]
    weights = np.array(list(found['weights'].values()))
    assert abs(weights.sum() - 1) < 1e-9
    assert max(found['skills'].values()) <= 0.5 + 1e-6
