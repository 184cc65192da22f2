"""Makes the SentencePiece model of mini_tldr from its grammar.

  python -m tasks.mini_tldr.vocabulary tasks/mini_tldr/mini_tldr.model

Every word of the grammar and of the judges' prompts is a piece. The rest of the
320 pieces are letters, for other text, and their BPE merges. The model depends
on the grammar alone.
"""

import argparse
import io
import string

import sentencepiece

from tasks.mini_tldr import grammar

SIZE = 320
# Words of the prompts of a comparator and of a reward model.
JUDGE_WORDS = (
  'you are an expert rater given a piece of text and two of its possible '
  'summaries output 1 or 2 to indicate which summary is better first second '
  'preferred good bad score worse answer choose rate true one short reddit'
)


def grammar_words() -> list[str]:
  """Returns the sorted words of the grammar and of the judges' prompts."""
  texts = [JUDGE_WORDS, 'r title post tl dr', *grammar.FILLERS]
  for kind in grammar.KINDS:
    texts += [*kind.post, kind.summary, *kind.values]
  for topic in grammar.TOPICS:
    texts += [topic.subreddit, *topic.titles, topic.question]
  return sorted(
    {word for text in texts for word in grammar.words(text)} - set('{}')
  )


def make() -> bytes:
  """Returns the serialised SentencePiece model."""
  words = grammar_words()
  posts = [grammar.post('train', index).text for index in range(1000)]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(posts),
    model_writer=model,
    model_type='bpe',
    vocab_size=SIZE,
    # Words follow a space, and a subreddit follows a slash.
    user_defined_symbols=[
      *(f'\u2581{word}' for word in words),
      *(topic.subreddit for topic in grammar.TOPICS),
    ],
    required_chars=string.ascii_lowercase + string.digits + "\u2581.,?!:;/'-",
    normalization_rule_name='identity',
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    num_threads=1,
    minloglevel=2,
  )
  return model.getvalue()


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('path', help='file to write')
  path = parser.parse_args().path
  with open(path, 'wb') as file:
    file.write(make())


if __name__ == '__main__':
  main()
