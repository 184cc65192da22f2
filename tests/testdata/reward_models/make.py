"""Makes the tokenizers of this folder, and the rewards that transformers gives.

In an environment with torch 2.13 (CPU) and transformers 5.24, at the root of
the repository:

  python -m tests.testdata.reward_models.make
"""

import json
import pathlib
import tempfile

import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers
import torch
import transformers

from tests.judges import tiny_reward_model

HERE = pathlib.Path(__file__).parent
SPECIAL = ('<s>', '</s>', '<pad>', '<|user|>', '<|assistant|>', '<|end|>')
SENTENCES = (
  'the cat sat down under a tree and slept while rain fell on the river '
  'because nobody had told her (or him) that 3 of 12 boats were late! '
  'naïve café résumé 東京 🙂 Ωμέγα "quoted" it\'s e.g. {braces} a_b'
)
WORDS = SENTENCES.split(' ')


def texts(count, seed):
  """Returns (prompt, y_1, y_2) of different lengths."""
  random = np.random.RandomState(seed)

  def text(low, high):
    words = random.choice(WORDS, random.randint(low, high))
    gaps = random.choice([' ', ' ', ' ', '  ', '\n', '\n\n'], len(words))
    return ''.join(w + g for w, g in zip(words, gaps, strict=True))

  rows = []
  for n in range(count):
    row = [text(1, 40).strip(), text(0, 12), text(1, 25).strip()]
    if n % 10 == 0:
      row[2] = row[1] + ' again'  # a common beginning
    rows.append(row)
  return rows


def byte_level(before):
  """Returns a tokenizer such as Llama 3's."""
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=tiny_reward_model.VOCAB_SIZE,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    special_tokens=list(SPECIAL),
    show_progress=False,
  )
  made.train_from_iterator([' '.join(WORDS)] * 3, trainer)
  made.post_processor = processors.TemplateProcessing(
    single=f'{before}$A', special_tokens=[('<s>', 0)]
  )
  return made


def metaspace():
  """Returns a tokenizer such as Mistral's, with a byte fallback."""
  pieces = [*SPECIAL, '<unk>', *(f'<0x{i:02X}>' for i in range(256))]
  letters = sorted({c for c in ' '.join(WORDS) if c.isascii() and c != ' '})
  vocab = {piece: i for i, piece in enumerate(pieces)}
  for piece in ['\u2581', *letters]:
    if len(vocab) < tiny_reward_model.VOCAB_SIZE - 8:
      vocab.setdefault(piece, len(vocab))
  merges = []
  for a, b in (('t', 'h'), ('th', 'e'), ('\u2581', 'the'), ('a', 't')):
    vocab.setdefault(a + b, len(vocab))
    merges.append((a, b))
  made = tokenizers.Tokenizer(
    models.BPE(
      vocab=vocab, merges=merges, unk_token='<unk>', byte_fallback=True
    )
  )
  made.normalizer = normalizers.Sequence(
    [normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')]
  )
  made.decoder = decoders.Sequence(
    [
      decoders.Replace('\u2581', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  made.add_special_tokens(list(SPECIAL))
  made.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 0)]
  )
  return made


def rewards(folder, text, pairs):
  """Returns the rewards of pairs of texts by transformers, in padded batches.

  Args:
    folder: The reward model.
    text: JUDGE_TEXT, or None for the chat template.
    pairs: Prompts with a completion.
  """
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  tokenizer.padding_side = 'right'
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  # A config.json whose padding is EOS is that of its tokenizer too.
  tokenizer.pad_token_id = model.config.pad_token_id

  def written(prompt, completion):
    if text is not None:
      return text.replace('{text}', prompt).replace('{first}', completion)
    messages = [
      {'role': 'user', 'content': prompt},
      {'role': 'assistant', 'content': completion},
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False)

  found = []
  for start in range(0, len(pairs), 16):
    batch = tokenizer(
      [written(*pair) for pair in pairs[start : start + 16]],
      return_tensors='pt',
      padding=True,
      return_token_type_ids=False,
      add_special_tokens=text is not None,
    )
    with torch.no_grad():
      found += model(**batch).logits[:, 0].tolist()
  return found


def golden(case, count):
  """Returns texts with their rewards and preferences."""
  rows = texts(count, seed=sum(map(ord, case)))
  pairs = [(x, y) for x, *pair in rows for y in pair]
  with tempfile.TemporaryDirectory() as folder:
    path = tiny_reward_model.write(pathlib.Path(folder, 'model'), case)
    found = rewards(path, tiny_reward_model.CASES[case][1], pairs)
  found = np.array(found).reshape(-1, 2)
  preference = 1 / (1 + np.exp(found[:, 1] - found[:, 0]))
  print(case, 'std', found.std(), 'margin', np.diff(found).std())
  return {
    'texts': rows,
    'rewards': np.round(found, 7).tolist(),
    'preference': np.round(preference, 7).tolist(),
  }


if __name__ == '__main__':
  byte_level('<s> ').save(str(HERE / 'byte_level.json'))
  byte_level('').save(str(HERE / 'no_bos.json'))
  metaspace().save(str(HERE / 'metaspace.json'))
  content = {case: golden(case, 100) for case in tiny_reward_model.CASES}
  text = json.dumps(content, ensure_ascii=False, indent=0)
  tiny_reward_model.GOLDEN.write_text(text + '\n')
