"""Side by side on a micro T5: numbers by hand, seams, the whole run twice."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md import agreement
from ipo_md import checkpoints
from ipo_md import data
from ipo_md import held_out
from ipo_md import judges
from ipo_md import pairwise
from ipo_md import results
from ipo_md import sequences
from ipo_md import sharding
from ipo_md import side_by_side
from ipo_md import types
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from tasks import mini_tldr
from tasks import mini_tldr_truth

MODEL = model_lib.Model(
  functools.partial(
    t5.T5,
    vocab_size=mini_tldr.VOCABULARY.vocab_size,
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
  return data.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': 74, 'targets': 36},
    split='validation',
    prompt_format=data.PromptFormat(suffix=(1,)),
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
    with checkpoints.manager(found[name], keep=checkpoints.Keep()) as saved:
      checkpoints.save(saved, state, mini_tldr.VOCABULARY)
      checkpoints.wait(saved)
  return found


@functools.cache
def learned_judge(path):
  return pairwise.LearnedJudge(
    judge=functools.partial(judges.likelihood, model=MODEL),
    model=MODEL,
    checkpoint_path=path,
    batch_size=8,
  )


def measure(prompts, completions):
  scores = map(mini_tldr_truth.score, prompts, completions)
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
    'prompts': held_out.Prompts(
      dataset=lambda: dataset('mini_tldr_prompts', True),
      examples=EXAMPLES,
      batch_size=8,
    ),
    'sampler': held_out.Sampler(max_new_tokens=4, eos_id=1),
    'judges': {
      'ground_truth': pairwise.TextJudge(mini_tldr_truth.preference),
      'reward_model': learned_judge(paths['judge']),
    },
    'measure': measure,
    'best_of': side_by_side.BestOf(
      n=3, policy='supervised', judge='reward_model'
    ),
    'agreement': agreement.Agreement(
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
    score = mini_tldr_truth.score(line['prompt'], text['text'])
    assert text['score']['words'] == score.words

  compare(tmp_path / 'a', paths)
  assert 'complete' in capsys.readouterr().out


def test_kl_is_over_plain_samples(tmp_path, paths):
  greedy = held_out.Sampler(max_new_tokens=4, eos_id=1, temperature=0.0)
  plain = {'best_of': None, 'agreement': None}
  compare(tmp_path / 'a', paths, **plain)
  compare(tmp_path / 'b', paths, **plain, sampler=greedy)
  a, b = (json.loads((tmp_path / x / 'results.json').read_text()) for x in 'ab')
  assert a['kl'] == b['kl']
  assert a['entropy'] == b['entropy']
  assert a['words'] != b['words']


def test_policies_do_not_share_noise(paths):
  mesh = sharding.make_mesh((1, -1, 1))
  prompts = held_out.Prompts(
    dataset=lambda: dataset('mini_tldr_prompts', True),
    examples=EXAMPLES,
    batch_size=8,
  )
  sampler = held_out.Sampler(max_new_tokens=4, eos_id=1)
  with jax.set_mesh(mesh):
    draw = held_out.drawer(MODEL, prompts, paths['supervised'], mesh, 0)
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
    params = checkpoints.load_params(
      path, MODEL, sharding.make_mesh((1, -1, 1)), name=''
    )
    found, _ = jax.jit(functools.partial(sequences.log_probs, MODEL))(
      params, tokens
    )
    np.testing.assert_allclose(found.sum(-1), expected, rtol=1e-5)


@pytest.fixture(scope='module')
def samples():
  rows = dataset('mini_tldr_pairs', False).rows([(0, n) for n in range(11)])
  return pairwise.Samples.of(rows.completions, mini_tldr.VOCABULARY)


def test_samples_as_text(samples):
  examples = mini_tldr_truth.score(samples.prompts[0], samples.texts[0][0])
  assert examples.words == len(samples.texts[0][0].split())
  both = pairwise.Samples.beside([samples, samples])
  swapped = both.take(np.tile([1, 2], (11, 1)))
  assert swapped.texts[3] == [samples.texts[3][1], samples.texts[3][0]]
  np.testing.assert_array_equal(
    swapped.tokens.completions.ids[:, 0], samples.tokens.completions.ids[:, 1]
  )


def test_text_judge_is_the_ground_truth(samples):
  judge = pairwise.TextJudge(mini_tldr_truth.preference)
  rows = dataset('mini_tldr_pairs', False).rows([(0, n) for n in range(11)])
  found = pairwise.preference(judge, samples, [(0, 1), (1, 0)])
  np.testing.assert_array_equal(found[:, 0], rows.preference)
  np.testing.assert_array_equal(found[:, 1], 1 - rows.preference)


def by_pairs(params, completions):
  """The likelihood judge as one that gives no rewards."""
  judged = judges.likelihood(params, completions, model=MODEL)
  return judged.replace(rewards=None)


def test_learned_judges_by_completion_and_by_pair(samples, paths):
  three = pairwise.Samples.beside([samples, samples]).take(
    np.tile([0, 1, 2], (11, 1))
  )
  pairs = [(0, 1), (1, 2), (2, 0)]
  with jax.set_mesh(sharding.make_mesh((1, -1, 1))):
    found = learned_judge(paths['judge'])(three, pairs)
    other = pairwise.LearnedJudge(
      judge=by_pairs,
      model=MODEL,
      checkpoint_path=paths['judge'],
      batch_size=8,
    )(three, pairs)
    chosen = pairwise.best_of(learned_judge(paths['judge']), three)
  params = checkpoints.load_params(
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
  found = results.matrices(list('abc'), judged, lengths)
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
  seen = agreement.blind_preference(scores, by_words, ['words'])
  decided = by_words != 0.5
  assert np.all((seen > 0.5)[decided] == (by_words > 0.5)[decided])
  unseen = agreement.blind_preference(scores, by_kept, ['words'])
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
        'prompts': held_out.Prompts(
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
