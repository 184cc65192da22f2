"""Tests of the embedded task: posts, writers, ground truth, vocabulary."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import seqio

from ipo_md.evaluation import judge_measures
from ipo_md.evaluation import statistics
from tasks.mini_tldr import grammar
from tasks.mini_tldr import tasks
from tasks.mini_tldr import truth
from tasks.mini_tldr import vocabulary
from tasks.mini_tldr import writers

POST = (
  'r/jobs title: no raise again. post: i live in denver. sorry for the long '
  'post. all this makes me guilty. my job is nurse. should i quit my job? '
  'tl;dr:'
)
GOOD = 'in denver, feel guilty, work as nurse. should i quit my job?'


def _digest(count):
  texts = []
  for split in tasks.SIZES:
    for index in range(count):
      texts += [writers.reference(split, index)[1]]
      post, y_1, y_2 = writers.compared(split, index)
      texts += [post.text, y_1, y_2]
  return hashlib.sha256('\n'.join(texts).encode()).hexdigest()[:16]


def test_data_never_change():
  assert _digest(100) == 'd43852bfc6a0201c'


@pytest.mark.slow
def test_data_do_not_depend_on_the_process():
  code = (
    'from tasks.mini_tldr import writers;'
    'print([writers.compared("train", i) for i in range(20)])'
  )
  env = {'PYTHONHASHSEED': '7', 'PYTHONPATH': ':'.join(sys.path)}
  out = subprocess.run(
    [sys.executable, '-c', code], env=env, capture_output=True, check=True
  )
  expected = [writers.compared('train', index) for index in range(20)]
  assert out.stdout.decode().strip() == repr(expected)


def test_posts_are_unique():
  posts = [
    grammar.post(split, index).text
    for split, size in tasks.SIZES.items()
    for index in range(size)
  ]
  assert len(set(posts)) == len(posts) == 49_152


def test_another_seed_gives_other_posts_of_the_same_splits():
  train = {grammar.post('train', index).text for index in range(2000)}
  other = {grammar.post('test', index, seed=1).text for index in range(2000)}
  assert not train & other


def test_unknown_split():
  with pytest.raises(ValueError, match="no split 'valid1'"):
    grammar.post('valid1', 0)


def test_values_are_disjoint():
  values = [value for kind in grammar.KINDS for value in kind.values]
  assert len(set(values)) == len(values)
  elsewhere = ' '.join(
    [*grammar.FILLERS]
    + [template for kind in grammar.KINDS for template in kind.post]
    + [' '.join((*topic.titles, topic.question)) for topic in grammar.TOPICS]
  ).split()
  assert not set(values) & set(elsewhere)


def test_vocabulary_is_that_of_the_grammar():
  with open(tasks.VOCABULARY.sentencepiece_model_file, 'rb') as file:
    assert file.read() == vocabulary.make()
  assert tasks.VOCABULARY.vocab_size == vocabulary.SIZE
  assert tasks.VOCABULARY.pad_id == 0
  assert tasks.VOCABULARY.eos_id == 1
  assert tasks.VOCABULARY.unk_id == 2


@pytest.mark.parametrize('word', ['1', '2', 'text', 'summary', 'better'])
def test_words_of_the_judges_are_single_pieces(word):
  assert len(tasks.VOCABULARY.encode(word)) == 1


def test_every_word_is_a_piece_and_decodes_to_itself():
  vocab = tasks.VOCABULARY
  longest = [0, 0]
  for index in range(500):
    post, *summaries = writers.compared('train', index)
    for text in (post.text, *summaries):
      ids = vocab.encode(text)
      assert len(ids) == len(grammar.words(text))
      assert vocab.unk_id not in ids
      assert vocab.decode(ids) == text
    longest[0] = max(longest[0], len(vocab.encode(post.text)))
    longest[1] = max([longest[1], *(len(vocab.encode(s)) for s in summaries)])
  assert longest[0] <= 72
  assert longest[1] + 1 <= 32  # with EOS


@pytest.mark.parametrize(
  'summary, expected',
  [
    # kept, invented, repeated, fillers, malformed, question, words
    (GOOD, (3, 0, 0, 0, 0, 1, 12)),
    ('', (0, 0, 0, 0, 0, 0, 0)),
    ('   ', (0, 0, 0, 0, 0, 0, 0)),
    ('.,,?', (0, 0, 0, 0, 4, 0, 1)),
    ('in denver', (1, 0, 0, 0, 0, 0, 2)),
    ('in denver. in denver, in denver.', (1, 0, 2, 0, 0, 0, 6)),
    ('in denver, in boston.', (1, 1, 0, 0, 0, 0, 4)),
    ('in boston, in boston.', (0, 1, 1, 0, 0, 0, 4)),
    ('in denver in denver.', (0, 0, 0, 0, 1, 0, 4)),
    ('in nurse, feel, denver.', (0, 0, 0, 0, 3, 0, 4)),
    ('In Denver.', (0, 0, 0, 0, 1, 0, 2)),
    ('in denver?', (0, 0, 0, 0, 1, 0, 2)),
    ('since june, feel guilty.', (1, 1, 0, 0, 0, 0, 4)),
    ('should i quit my job?', (0, 0, 0, 0, 0, 1, 5)),
    ('should i quit my job.', (0, 0, 0, 0, 1, 0, 5)),
    ('should i move out?', (0, 0, 0, 0, 0, -1, 4)),
    ('should i quit my job? should i move out?', (0, 0, 0, 0, 0, -1, 9)),
    ('should i quit my job? should i quit my job?', (0, 0, 1, 0, 0, 1, 10)),
    ('sorry for the long post, please be kind.', (0, 0, 0, 2, 0, 0, 8)),
    ('in \u2047 denver, \u2047.', (0, 0, 0, 0, 2, 0, 4)),
    (POST, (0, 0, 0, 1, 5, 1, 30)),
  ],
)
def test_scores_by_hand(summary, expected):
  score = truth.score(POST, summary)
  assert (
    score.kept,
    score.invented,
    score.repeated,
    score.fillers,
    score.malformed,
    score.question,
    score.words,
  ) == expected
  weights = (1, -1.5, -0.75, -0.5, -0.75, 0.75, -0.05)
  assert score.total == pytest.approx(np.dot(weights, expected))


@pytest.mark.parametrize('post', ['', 'a post: about nothing?', GOOD])
def test_text_that_is_not_a_post(post):
  with pytest.raises(ValueError, match='is not a post of mini_tldr'):
    truth.score(post, GOOD)


def test_truth_reads_what_the_grammar_wrote():
  for index in range(300):
    post = grammar.post('validation', index)
    facts, question = truth.read_post(post.text)
    assert facts == set(post.facts)
    assert question == post.question


def test_a_perfect_writer_is_never_beaten():
  for index in range(300):
    post = grammar.post('test', index)
    dice = grammar.Dice('perfect', index)
    best = writers.write(post, writers.PERFECT, dice)
    score = truth.score(post.text, best)
    assert (score.kept, score.question) == (len(post.facts), 1)
    for writer in writers.COMPARED_WRITERS:
      other = writers.write(post, writer, dice)
      assert truth.preference(post.text, best, other) >= 0.5


def test_preference_is_antisymmetric():
  for index in range(300):
    post, y_1, y_2 = writers.compared('train', index)
    p = truth.preference(post.text, y_1, y_2)
    assert p + truth.preference(post.text, y_2, y_1) == 1
    assert truth.preference(post.text, y_1, y_1) == 0.5


def test_a_judge_that_cannot_see_the_post_falls_short():
  rows = [writers.compared('validation', index) for index in range(3000)]
  posts, *summaries = zip(*((p.text, *pair) for p, *pair in rows), strict=True)
  labels = np.array([truth.preference(p.text, *pair) for p, *pair in rows])
  assert np.mean(labels) == pytest.approx(0.5, abs=0.02)
  assert np.mean(labels == 0.5) < 0.06
  measured = [truth.measures(posts, column) for column in summaries]
  form = ('clauses', 'questions', 'repeated', 'fillers', 'malformed', 'words')
  judged = judge_measures.blind_preference(
    list(zip(*measured, strict=True)), labels, form
  )
  assert 0.64 < statistics.agreement(judged, labels)[0] < 0.74


def test_measures():
  (measured,) = truth.measures([POST], ['in denver, in boston. in denver.'])
  assert measured == {
    'facts_kept': 1,
    'facts_invented': 1,
    'score': pytest.approx(1 - 1.5 - 0.75 - 0.3),
    'clauses': 2,
    'questions': 0,
    'repeated': 1,
    'fillers': 0,
    'malformed': 0,
    'words': 6,
  }


def test_references_leave_room_to_improve():
  scores = [
    truth.score(post.text, summary)
    for post, summary in (writers.reference('train', i) for i in range(2000))
  ]
  mean = lambda field: np.mean([getattr(score, field) for score in scores])
  assert 2.3 < mean('kept') < 2.9
  assert 0.3 < mean('invented') < 0.6
  assert 0.5 < mean('question') < 0.8
  assert mean('total') < 1.5


def test_supervised_task():
  task = seqio.get_mixture_or_task('mini_tldr_sft')
  assert task.num_input_examples('train') == 40_960
  dataset = task.get_dataset(None, split='validation', shuffle=False)
  vocab = tasks.VOCABULARY
  for index, example in enumerate(dataset.take(20).as_numpy_iterator()):
    post, summary = writers.reference('validation', index)
    assert example['inputs_pretokenized'].decode() == post.text
    assert vocab.decode(example['inputs'].tolist()) == post.text
    assert example['inputs'][-1] != vocab.eos_id
    assert example['targets'][-1] == vocab.eos_id
    assert vocab.decode(example['targets'][:-1].tolist()) == summary


def test_prompts_are_those_of_the_supervised_task():
  first = [
    next(
      iter(
        seqio.get_mixture_or_task(name)
        .get_dataset({'inputs': 72, 'targets': 32}, split='test', shuffle=False)
        .as_numpy_iterator()
      )
    )
    for name in ('mini_tldr_sft', 'mini_tldr_prompts')
  ]
  np.testing.assert_array_equal(first[0]['inputs'], first[1]['inputs'])


def test_pairs_task():
  dataset = seqio.get_mixture_or_task('mini_tldr_pairs').get_dataset(
    {'inputs': 72, 'targets': 32}, split='validation', shuffle=False
  )
  vocab = tasks.VOCABULARY
  for index, example in enumerate(dataset.take(20).as_numpy_iterator()):
    post, *summaries = writers.compared('validation', index)
    assert example['inputs_pretokenized'].decode() == post.text
    assert example['targets'].shape[0] == 2
    for row, summary in zip(example['targets'], summaries, strict=True):
      length = np.sum(row != 0)
      assert row[length - 1] == vocab.eos_id
      assert not row[length:].any()
      assert vocab.decode(row[: length - 1].tolist()) == summary
    assert example['preference'].dtype == np.float32
    assert example['preference'] == truth.preference(post.text, *summaries)
