"""A Hugging Face tokenizer.json as a seqio vocabulary."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
from typing import Any

from etils import epath
import numpy as np
import seqio
import tensorflow as tf
import tokenizers


class TokenizerVocabulary(seqio.Vocabulary):
  """A byte-level tokenizer such as Llama 3's, or one with a byte fallback.

  Texts are encoded without BOS and EOS, which the prompt format of the model
  and the task add. Special tokens that are written out in a text are text; only
  `encode_template` reads them. What tokenizer.json says about truncation,
  padding and dropout belongs to another program and is ignored. Llama 3 has no
  padding token. Padding is id 0 throughout the package, and masks distinguish
  it from the token with that id.

  `data.tokenizer_vocabulary` makes one and describes its arguments.
  """

  def __init__(
    self,
    path: str,
    *,
    eos_id: int,
    bos_id: int | None = None,
    prefix_space: bool = True,
    trim_texts: bool = False,
  ):
    super().__init__()
    self.path, self._eos_id, self._bos_id = str(path), eos_id, bos_id
    self._prefix_space, self.trim_texts = prefix_space, trim_texts
    self._stamp = _stamp(self.path)
    self._digest = hashlib.sha256(self.sp_model).hexdigest()[:12]
    for name, value in (('EOS_ID', eos_id), ('BOS_ID', bos_id)):
      if value is not None and (
        value < 0 or self._tokenizer.id_to_token(value) is None
      ):
        raise ValueError(
          f'{name} = {value} is no token of {path} (TOKENIZER_PATH), which has '
          f'{self.vocab_size} tokens.'
        )

  @property
  def _loaded(self) -> '_Loaded':
    return _load(self.path, self._stamp, self._prefix_space)

  @property
  def _tokenizer(self) -> tokenizers.Tokenizer:
    return self._loaded.tokenizer

  @functools.cached_property
  def special_tokens(self) -> dict[int, str]:
    """The special tokens of the file, EOS and BOS, id -> text."""
    ids = {i for i in (self.eos_id, self.bos_id) if i is not None}
    ends = {
      i: token
      for i in sorted(ids)
      if (token := self._tokenizer.id_to_token(i)) is not None
    }
    return dict(self._loaded.special) | ends

  @property
  def added_special_tokens(self) -> dict[int, str]:
    """The special tokens that the tokenizer finds in a text, id -> text."""
    added = self._tokenizer.get_added_tokens_decoder()
    return {i: t for i, t in self.special_tokens.items() if i in added}

  @functools.cached_property
  def _text_tokenizer(self) -> tokenizers.Tokenizer:
    special = tuple(sorted(self.special_tokens.items()))
    return _without_special_tokens(self._loaded.content, special)

  def __getstate__(self) -> dict[str, Any]:
    """Leaves out what is made again, since gin copies its arguments."""
    made = ('special_tokens', '_text_tokenizer')
    return {k: v for k, v in self.__dict__.items() if k not in made}

  @property
  def sp_model(self) -> bytes:
    """The content that identifies this vocabulary.

    The name is that of `seqio.SentencePieceVocabulary`, so that checkpoints
    compare both kinds in one way.
    """
    return self._loaded.content

  @property
  def bos_id(self) -> int | None:
    return self._bos_id

  @property
  def eos_id(self) -> int:
    return self._eos_id

  @property
  def unk_id(self) -> None:
    return None

  @property
  def _base_vocab_size(self) -> int:
    return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

  def _encode(self, s: str) -> Sequence[int]:
    text = s.strip() if self.trim_texts else s
    return self._text_tokenizer.encode(text, add_special_tokens=False).ids

  def encode_template(self, text: str) -> Sequence[int]:
    """Encodes a text of a gin file, in which special tokens are tokens."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_rendered(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
    """Encodes texts of a chat template, each as one text.

    Special tokens are tokens. In a text with one of their `hidden_name`s, these
    are tokens and the special tokens themselves are text.
    """
    out: list[Any] = [None] * len(texts)
    for hidden, tokenizer in (
      (False, lambda: self._tokenizer),
      (True, lambda: self._text_tokenizer),
    ):
      rows = [i for i, text in enumerate(texts) if ('\0' in text) == hidden]
      if rows:
        encoded = tokenizer().encode_batch(
          [texts[i] for i in rows], add_special_tokens=False
        )
        for i, encoding in zip(rows, encoded, strict=True):
          out[i] = encoding
    return out

  def encode_continuation(self, text: str) -> list[int]:
    """Encodes a text of a chat template that follows another one."""
    loaded = _load(self.path, self._stamp, False)
    tokenizer = loaded.tokenizer
    if '\0' in text:
      special = tuple(sorted(self.special_tokens.items()))
      tokenizer = _without_special_tokens(loaded.content, special)
    return tokenizer.encode(text, add_special_tokens=False).ids

  def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the ids that the file puts before and after a text.

    Llama's puts BOS before it, T5's EOS after it, and SmolLM2's nothing.
    """
    encoded = self._tokenizer.encode('a', add_special_tokens=True)
    added = encoded.special_tokens_mask
    first = added.index(0)
    last = len(added) - added[::-1].index(0)
    return tuple(encoded.ids[:first]), tuple(encoded.ids[last:])

  def _decode(self, ids: Sequence[int]) -> str:
    """Decodes ids and drops special tokens such as EOS."""
    return self._tokenizer.decode([int(i) for i in ids])

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    """Encodes a string to [*] ids, or [n] strings to ragged [n, *] ids."""
    ids, lengths = tf.numpy_function(
      self._encode_rows, [s], (tf.int32, tf.int64), stateful=False
    )
    ids = tf.ensure_shape(ids, [None])
    if s.shape.rank == 0:
      return ids
    from_lengths = tf.RaggedTensor.from_row_lengths  # pyright: ignore[reportAttributeAccessIssue]  # generated
    return from_lengths(ids, tf.ensure_shape(lengths, s.shape))

  def _encode_rows(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the flat ids of texts, and their numbers of ids.

    It is not defined inside of `_encode_tf`, because AutoGraph would convert it
    with that, and each of its calls for each text.
    """
    texts = np.ravel(np.asarray(texts, object))
    rows = [self._encode(text.decode()) for text in texts]
    ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
    return ids, np.array([len(row) for row in rows], np.int64)

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    """Decodes [T] ids to a string."""
    text = tf.py_function(
      lambda row: tf.constant(self._decode(row.numpy().tolist())),
      [ids],
      tf.string,
    )
    return tf.ensure_shape(text, [])

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, TokenizerVocabulary)
      and self._digest == other._digest
      and self.eos_id == other.eos_id
      and self.bos_id == other.bos_id
      and self.trim_texts == other.trim_texts
    )

  def __str__(self) -> str:
    return f'TokenizerVocabulary({self.path}, {self.vocab_size})'


@dataclasses.dataclass(frozen=True)
class _Loaded:
  """A tokenizer, the content that defines it, and its special tokens."""

  content: bytes
  tokenizer: tokenizers.Tokenizer
  special: Mapping[int, str]


def _stamp(path: str) -> tuple[int, int]:
  """Returns what tells whether a file has changed since it was loaded."""
  file = epath.Path(path)
  if not file.exists():
    raise ValueError(f'There is no file {path} (TOKENIZER_PATH).')
  stat = file.stat()
  return stat.length, stat.mtime


@functools.cache
def _load(path: str, stamp: tuple[int, int], prefix_space: bool) -> _Loaded:
  """Reads a tokenizer. Its file has the size and time of `stamp`."""
  del stamp
  content = epath.Path(path).read_bytes()
  try:
    if not prefix_space:
      content = _without_prefix_space(content)
    tokenizer = tokenizers.Tokenizer.from_buffer(_deterministic(content))
  except Exception as error:  # the package raises nothing more specific
    raise ValueError(
      f'{path} (TOKENIZER_PATH) is not a tokenizer.json: {error}.'
    ) from error
  added = tokenizer.get_added_tokens_decoder()
  special = {i: t.content for i, t in sorted(added.items()) if t.special}
  return _Loaded(content, tokenizer, special)


def _deterministic(content: bytes) -> bytes:
  """Removes what makes the tokens of a text depend on more than the text.

  Published files often keep the truncation and padding of their training.
  """
  tokenizer = json.loads(content)
  tokenizer |= {'truncation': None, 'padding': None}
  if tokenizer['model'].get('dropout') is not None:
    tokenizer['model']['dropout'] = None
  return json.dumps(tokenizer, ensure_ascii=False).encode()


def hidden_name(id_: int) -> str:
  """Returns the text of a special token where its own text is text."""
  return f'\0special {id_}\0'


@functools.cache
def _without_special_tokens(
  content: bytes, special: tuple[tuple[int, str], ...]
) -> tokenizers.Tokenizer:
  """Returns a tokenizer that finds no special token in a text.

  Their ids stay, under names with a NUL character, which no text has. It is not
  enough not to look for added tokens, because a vocabulary of words or of a
  unigram model may have them as pieces.

  Args:
    content: A tokenizer.json.
    special: Pairs of the id and the text of a token.
  """
  tokenizer = json.loads(_deterministic(content))
  renamed = {text: hidden_name(i) for i, text in special}
  new = lambda text: renamed.get(text, text)
  for token in tokenizer.get('added_tokens') or ():
    token['content'] = new(token['content'])
  model = tokenizer['model']
  if isinstance(model['vocab'], dict):
    model['vocab'] = {new(text): i for text, i in model['vocab'].items()}
  else:
    model['vocab'] = [[new(text), *rest] for text, *rest in model['vocab']]
  if isinstance(model.get('unk_token'), str):
    model['unk_token'] = new(model['unk_token'])
  if model.get('merges'):
    pair = lambda m: tuple(m.split(' ')) if isinstance(m, str) else tuple(m)
    model['merges'] = [
      merge
      for merge in model['merges']
      if not renamed.keys() & {*pair(merge), ''.join(pair(merge))}
    ]
  tokenizer['post_processor'] = None
  return tokenizers.Tokenizer.from_str(
    json.dumps(tokenizer, ensure_ascii=False)
  )


def _without_prefix_space(content: bytes) -> bytes:
  """Removes the steps that add or strip a space before a text."""

  def edit(node):
    if isinstance(node, list):
      return [
        edit(x)
        for x in node
        if x.get('type') != 'Prepend'
        and not (x.get('type') == 'Strip' and 'content' in x)
      ]
    if node.get('type') == 'Metaspace':
      node = node | {'prepend_scheme': 'never', 'add_prefix_space': False}
    lists = ('normalizers', 'pretokenizers', 'decoders')
    return node | {key: edit(node[key]) for key in lists if key in node}

  tokenizer = json.loads(content)
  for part in ('normalizer', 'pre_tokenizer', 'decoder'):
    if tokenizer.get(part) is not None:
      tokenizer[part] = next(iter(edit([tokenizer[part]])), None)
  return json.dumps(tokenizer, ensure_ascii=False).encode()


def tokens_of(path: str) -> Mapping[int, str]:
  """Returns the tokens of a tokenizer.json but for the added ones, by id."""
  tokenizer = _load(path, _stamp(path), True).tokenizer
  added = tokenizer.get_added_tokens_decoder()
  words = tokenizer.get_vocab(with_added_tokens=False)
  return {i: word for word, i in words.items() if i not in added}
