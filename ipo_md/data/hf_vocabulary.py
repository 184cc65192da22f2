"""A Hugging Face tokenizer.json as a seqio vocabulary."""

from collections.abc import Sequence
import functools
import hashlib
import json

from etils import epath
import seqio
import tensorflow as tf
import tokenizers


class TokenizerVocabulary(seqio.Vocabulary):
  """A byte-level tokenizer such as Llama 3's, or one with a byte fallback.

  Texts are encoded without BOS and EOS, which the prompt format of the model
  and the task add. Llama 3 has no padding token. Padding is id 0 throughout
  the package, and masks distinguish it from the token with that id.

  `data.tokenizer_vocabulary` makes one and describes its arguments.
  """

  def __init__(
    self,
    path: str,
    *,
    eos_id: int,
    bos_id: int | None = None,
    prefix_space: bool = True,
  ):
    super().__init__()
    self.path, self._eos_id, self._bos_id = str(path), eos_id, bos_id
    self._prefix_space = prefix_space
    self._digest = hashlib.sha256(self.sp_model).hexdigest()[:12]
    for name, value in (('EOS_ID', eos_id), ('BOS_ID', bos_id)):
      if value is not None and self._tokenizer.id_to_token(value) is None:
        raise ValueError(
          f'{name} = {value} is no token of {path} (TOKENIZER_PATH), which has '
          f'{self.vocab_size} tokens.'
        )

  @property
  def _tokenizer(self) -> tokenizers.Tokenizer:
    return _load(self.path, self._prefix_space)[1]

  @property
  def sp_model(self) -> bytes:
    """The content that identifies this vocabulary.

    The name is that of `seqio.SentencePieceVocabulary`, so that checkpoints
    compare both kinds in one way.
    """
    return _load(self.path, self._prefix_space)[0]

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
    return self._tokenizer.encode(s, add_special_tokens=False).ids

  def _decode(self, ids: Sequence[int]) -> str:
    """Decodes ids and drops special tokens such as EOS."""
    return self._tokenizer.decode([int(i) for i in ids])

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    """Encodes a string to [*] ids, or [n] strings to ragged [n, *] ids."""
    if s.shape.rank == 0:
      ids = tf.py_function(
        lambda text: tf.constant(self._encode(text.numpy().decode()), tf.int32),
        [s],
        tf.int32,
      )
      return tf.ensure_shape(ids, [None])
    return tf.map_fn(
      self._encode_tf,
      s,
      fn_output_signature=tf.RaggedTensorSpec([None], tf.int32, 0),
    )

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
    )

  def __str__(self) -> str:
    return f'TokenizerVocabulary({self.path}, {self.vocab_size})'


@functools.cache
def _load(path: str, prefix_space: bool) -> tuple[bytes, tokenizers.Tokenizer]:
  """Reads a tokenizer and returns it after the content that defines it."""
  file = epath.Path(path)
  if not file.exists():
    raise ValueError(f'There is no file {path} (TOKENIZER_PATH).')
  content = file.read_bytes()
  try:
    if not prefix_space:
      content = _without_prefix_space(content)
    return content, tokenizers.Tokenizer.from_buffer(content)
  except Exception as error:  # the package raises nothing more specific
    raise ValueError(
      f'{path} (TOKENIZER_PATH) is not a tokenizer.json: {error}.'
    ) from error


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
