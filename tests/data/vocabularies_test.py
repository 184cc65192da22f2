"""Tests of the choice and the check of a run's vocabulary."""

import pytest
import seqio

from ipo_md.data import vocabularies
from tests.data import hand_made


def test_a_vocabulary_that_cannot_be_read(tmp_path):
  missing = seqio.SentencePieceVocabulary(str(tmp_path / 'spm.model'))
  with pytest.raises(ValueError, match='cannot be read .*spm.model.*VOCAB'):
    hand_made.load(hand_made.supervised(), vocabulary=missing)


def test_the_vocabulary_of_a_run():
  other = seqio.ByteVocabulary(7)
  name = hand_made.supervised()
  assert (
    vocabularies.vocabulary(mixture_or_task_name=name) is hand_made.VOCABULARY
  )
  found = vocabularies.vocabulary(mixture_or_task_name=name, vocabulary=other)
  assert found is other
