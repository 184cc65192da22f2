"""The one place where texts become tokens and tokens become texts.

A text of the data is text: special tokens that are written out in it, such as
</s> or <|end_of_text|>, are encoded as their characters. Only a template, which
a gin file writes, may name them. BOS and EOS are added by the prompt format and
by the task, never by a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
import functools
import re
from typing import Any

from etils import epy

from ipo_md.core import types

with epy.lazy_imports():
  import sentencepiece
  from sentencepiece import sentencepiece_model_pb2
  import seqio

  from ipo_md.data import hf_vocabulary


def encode(
  vocabulary: types.Vocabulary, texts: Sequence[str]
) -> list[Sequence[int]]:
  """Encodes texts of the data, without BOS and EOS.

  Args:
    vocabulary: Vocabulary of the model.
    texts: N texts.

  Returns:
    N rows of token ids, none of which is BOS or EOS.
  """
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    # SentencePiece encodes a batch on all cores.
    return _text_processor(vocabulary.sp_model).encode(list(texts))
  return [vocabulary.encode(text) for text in texts]


def encode_template(vocabulary: types.Vocabulary, text: str) -> list[int]:
  """Encodes a text of a gin file, in which special tokens are tokens."""
  if isinstance(vocabulary, hf_vocabulary.TokenizerVocabulary):
    return list(vocabulary.encode_template(text))
  return list(vocabulary.encode(text))


def is_trimmed(vocabulary: types.Vocabulary, text: str) -> bool:
  """Returns whether the vocabulary drops spaces at the ends of a text."""
  return (
    isinstance(vocabulary, hf_vocabulary.TokenizerVocabulary)
    and vocabulary.trim_texts
    and text != text.strip()
  )


def has_special_tokens(vocabulary: types.Vocabulary, text: str) -> bool:
  """Returns whether a special token is written out in a text."""
  pattern = _pattern(tuple(special_tokens(vocabulary).values()))
  return pattern is not None and pattern.search(text) is not None


def special_tokens(vocabulary: types.Vocabulary) -> dict[int, str]:
  """Returns the special tokens of a vocabulary, id -> text."""
  if isinstance(vocabulary, hf_vocabulary.TokenizerVocabulary):
    return vocabulary.special_tokens
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return _special_pieces(vocabulary.sp_model)
  return {}


def around(
  vocabulary: types.Vocabulary,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the ids that a tokenizer.json puts before and after a text.

    around(llama_3)  # ((128000,), ())

  A vocabulary of another kind puts none.
  """
  if isinstance(vocabulary, hf_vocabulary.TokenizerVocabulary):
    return vocabulary.around()
  return (), ()


def show(vocabulary: types.Vocabulary, ids: Iterable[int]) -> str:
  """Decodes all of the ids, with special tokens visible.

  `vocabulary.decode` stops at the first EOS and drops special tokens.
  """
  special = special_tokens(vocabulary) or {vocabulary.eos_id: '<eos>'}
  shown, run = [], []
  for id_ in ids:
    if id_ in special:
      shown += [vocabulary.decode(run), special[id_]] if run else [special[id_]]
      run = []
    else:
      run.append(int(id_))
  return ''.join([*shown, vocabulary.decode(run)] if run else shown)


@functools.cache
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
  return re.compile('|'.join(map(re.escape, tokens))) if tokens else None


def _parsed(model: bytes) -> Any:
  """Parses a SentencePiece model; its classes are made at run time."""
  messages: Any = sentencepiece_model_pb2
  return messages.ModelProto.FromString(model)


@functools.cache
def _special_pieces(model: bytes) -> dict[int, str]:
  """Returns BOS, EOS, control pieces and seqio's extra ids."""
  proto = _parsed(model)
  ends = {proto.trainer_spec.bos_id, proto.trainer_spec.eos_id}
  extra = re.compile('\u2581<extra_id_[0-9]+>')
  return {
    i: piece.piece.removeprefix('\u2581')
    for i, piece in enumerate(proto.pieces)
    if piece.type == piece.CONTROL
    or (piece.type == piece.USER_DEFINED and i in ends)
    or (piece.type == piece.USER_DEFINED and extra.fullmatch(piece.piece))
  }


@functools.cache
def _text_processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
  """Returns a processor that never reads a special piece out of a text."""
  proto = _parsed(model)
  for id_ in _special_pieces(model):
    proto.pieces[id_].type = proto.pieces[id_].CONTROL
  processor = sentencepiece.SentencePieceProcessor()
  processor.LoadFromSerializedProto(proto.SerializeToString())
  return processor
