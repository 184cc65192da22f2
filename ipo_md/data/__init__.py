"""Data sets, prompt formats, vocabularies and batches.

Importing this package does not import TensorFlow or seqio. The functions that
read a task import them when they are called.
"""

from ipo_md.data.batches import Batches
from ipo_md.data.batches import check_size
from ipo_md.data.batches import in_order
from ipo_md.data.batches import prefetch
from ipo_md.data.conversations import prompts_of
from ipo_md.data.dataset import Dataset
from ipo_md.data.dataset import check_vocabulary
from ipo_md.data.dataset import count
from ipo_md.data.dataset import first_rows
from ipo_md.data.dataset import load
from ipo_md.data.encoding import around
from ipo_md.data.encoding import encode
from ipo_md.data.encoding import encode_template
from ipo_md.data.examples import Examples
from ipo_md.data.examples import Ragged
from ipo_md.data.examples import chunks
from ipo_md.data.examples import of_prompts
from ipo_md.data.examples import tokenise
from ipo_md.data.prompt_format import PromptFormat
from ipo_md.data.registry import find
from ipo_md.data.vocabularies import byte_vocabulary
from ipo_md.data.vocabularies import differing_token
from ipo_md.data.vocabularies import sentencepiece_vocabulary
from ipo_md.data.vocabularies import tokenizer_vocabulary
from ipo_md.data.vocabularies import vocabulary

__all__ = [
  'differing_token',
  'byte_vocabulary',
  'Batches',
  'Dataset',
  'Examples',
  'PromptFormat',
  'Ragged',
  'around',
  'check_size',
  'check_vocabulary',
  'chunks',
  'count',
  'encode',
  'encode_template',
  'find',
  'first_rows',
  'in_order',
  'load',
  'of_prompts',
  'prefetch',
  'prompts_of',
  'sentencepiece_vocabulary',
  'tokenise',
  'tokenizer_vocabulary',
  'vocabulary',
]
