"""Makes the tokenizers and golden.json.gz, what transformers makes of them.

In an environment with transformers 5.24 and jinja2 3.1.6, without torch:

  python tests/testdata/chat/make.py

The templates are written for these tests, one for each kind that is published.
"""

import datetime
import gzip
import json
import pathlib
import random

import jinja2
import tokenizers
import transformers
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
SPECIAL = [
  '<s>',
  '</s>',
  '<unk>',
  '<|im_start|>',
  '<|im_end|>',
  '<|start_header_id|>',
  '<|end_header_id|>',
  '<|eot_id|>',
  '<start_of_turn>',
  '<end_of_turn>',
  '[INST]',
  '[/INST]',
  '<|system|>',
  '<|user|>',
  '<|assistant|>',
  '<|end|>',
  '<\uff5cUser\uff5c>',
  '<\uff5cAssistant\uff5c>',
]
PROMPTS = [
  'Hi there',
  '  two spaces before',
  'two spaces after  ',
  '\n\n  lines and spaces before',
  'lines after\n\n\n',
  '\ttabs\t',
  '12345 digits 67890',
  '\U0001f642 emoji at both ends \U0001f469\u200d\U0001f4bb',
  'caf\u00e9 <b>&amp;</b> "quotes" \u4f60\u597d',
  ' ',
]
TURN = lambda role, content: {'role': role, 'content': content}
SYSTEM = TURN('system', ' Be brief. ')
FIRST = [TURN('user', 'One?'), TURN('assistant', ' 1.\n'), TURN('user', 'Two?')]
CONVERSATIONS = [
  *([TURN('user', text)] for text in PROMPTS),
  [SYSTEM, TURN('user', 'Hi there')],
  FIRST,
  [SYSTEM, *FIRST],
  [*FIRST, TURN('assistant', '2'), TURN('user', ' \nThree?')],
  [TURN('user', 'One?'), TURN('user', 'Two?')],
  [TURN('assistant', 'Ask me.'), TURN('user', 'Two?')],
  [
    TURN('user', 'One?'),
    TURN('assistant', '<think>\nhm\n</think>\n\n1'),
    TURN('user', 'Two?'),
  ],
]
ANSWERS = ['Sure.', ' \n Sure, 2.  \n']


class _Day(datetime.datetime):
  @classmethod
  def now(cls, tz=None):
    return cls(2026, 1, 31)


def texts():
  """Returns a text from which tokenizers learn merges over spaces and lines."""
  words = 'the of hi there two spaces lines after before digits emoji at both '
  words += 'ends assistant user system model You help Be brief One Two Three '
  words += 'Instruction Response think Sure Today Date quotes 12 34 56'
  words, rng = words.split(), random.Random(0)
  gaps = [' ', ' ', ' ', '\n', '\n\n', '\n  ', '  ', '\n\n\n', '\t', '.\n', '?']
  return [
    ''.join(rng.choice(words) + rng.choice(gaps) for _ in range(20))
    for _ in range(400)
  ]


def byte_level():
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=480,
    special_tokens=SPECIAL,
    initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
  )
  tokenizer.train_from_iterator(texts(), trainer)
  # Added, but not special, as those of a model that thinks.
  tokenizer.add_tokens(['<think>', '</think>'])
  return tokenizer


def prefix_space():
  """A tokenizer that puts a space before each text, as Llama 2's does."""
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(unk_token='<unk>', byte_fallback=True)
  )
  tokenizer.normalizer = tokenizers.normalizers.Sequence(
    [
      tokenizers.normalizers.Prepend('\u2581'),
      tokenizers.normalizers.Replace(' ', '\u2581'),
    ]
  )
  tokenizer.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace('\u2581', ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(' ', 1, 0),
    ]
  )
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=640,
    special_tokens=[*SPECIAL, *(f'<0x{i:02X}>' for i in range(256))],
  )
  tokenizer.train_from_iterator(texts(), trainer)
  # Bytes are no special tokens.
  state = json.loads(tokenizer.to_str())
  state['added_tokens'] = [
    t for t in state['added_tokens'] if t['content'] in SPECIAL
  ]
  return tokenizers.Tokenizer.from_str(json.dumps(state))


def save(name, tokenizer):
  folder = HERE / name
  folder.mkdir(exist_ok=True)
  tokenizer.save(str(folder / 'tokenizer.json'), pretty=False)
  config = {
    'bos_token': '<s>',
    'eos_token': {'content': '</s>', 'special': True},
    'unk_token': '<unk>',
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(config) + '\n')
  return transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(folder / 'tokenizer.json'),
    bos_token='<s>',
    eos_token='</s>',
    unk_token='<unk>',
  )


def cases(tokenizer, template, **kwargs):
  """Yields [text, ids] or [None, error] of all conversations and answers."""
  apply = lambda messages, ask, tokenize: tokenizer.apply_chat_template(
    messages,
    chat_template=template,
    add_generation_prompt=ask,
    tokenize=tokenize,
    return_dict=False,
    **kwargs,
  )
  for conversation in CONVERSATIONS:
    turns = [(conversation, True)]
    turns += [([*conversation, TURN('assistant', a)], False) for a in ANSWERS]
    for messages, ask in turns:
      try:
        yield [apply(messages, ask, False), apply(messages, ask, True)]
      except jinja2.TemplateError as error:
        yield [None, str(error)]


def main():
  chat_template_utils.datetime = _Day
  made = {
    'byte_level': save('byte_level', byte_level()),
    'prefix_space': save('prefix_space', prefix_space()),
  }
  golden = {}
  for path in sorted((HERE / 'templates').glob('*.jinja')):
    template = path.read_text()
    for name, tokenizer in made.items():
      golden[f'{path.stem} {name}'] = list(cases(tokenizer, template))
    if path.stem == 'thinking':
      golden['thinking byte_level off'] = list(
        cases(made['byte_level'], template, enable_thinking=False)
      )
  content = {
    'conversations': CONVERSATIONS,
    'answers': ANSWERS,
    'golden': golden,
  }
  text = json.dumps(content, separators=(',', ':'))
  (HERE / 'golden.json.gz').write_bytes(gzip.compress(text.encode(), mtime=0))
  print(f'transformers {transformers.__version__}, {len(text):,} characters')


if __name__ == '__main__':
  main()
