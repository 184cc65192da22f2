"""Measures how fast the token cache is made and read.

  python tests/benchmarks/token_cache.py --vocabulary=spm.model
  python tests/benchmarks/token_cache.py --vocabulary=spm.model --form=parquet

Examples consist of random words: prompts of about 128 tokens and one target.
Prints the rate of the tokeniser on one thread, the rate at which the cache is
made, the time to start from the cache, the time of a batch of 32 and the peak
memory.
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import resource
import tempfile
import time

import jax
import numpy as np
import pyarrow as pa
from pyarrow import parquet
import seqio

from ipo_md.core import gin_config
from ipo_md.data import batches
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format

gin_config.add_root()
from tasks import preference_files  # noqa: E402
from tasks.lib import text_tasks  # noqa: E402

_WORDS = 90  # about 128 tokens


def _write(path: str, examples: int, words: list[str]):
  rng = np.random.default_rng(0)
  with open(path, 'w') as file:
    for first in range(0, examples, 10_000):
      chosen = rng.integers(len(words), size=(10_000, _WORDS + 20))
      for row in chosen[: examples - first]:
        text = [words[i] for i in row]
        file.write(f'{" ".join(text[20:])}|{" ".join(text[:20])}\n')


def _add_task(path: str):
  def rows(split):
    del split
    with open(path) as file:
      for line in file:
        prompt, target = line.rstrip().split('|')
        yield {'inputs': prompt, 'targets': target}

  source = text_tasks.Source(
    rows,
    files=lambda split: [path],
    signature=text_tasks.SUMMARY,
    splits=['train'],
  )
  text_tasks.add_task('benchmark', source, targets_rank=1)


def _convert(path: str, form: str) -> str:
  """Writes the examples as a preference file and returns its path."""
  out = f'{path}.{form}'
  writer = None
  with open(path) as lines, contextlib.ExitStack() as stack:
    while part := list(itertools.islice(lines, 100_000)):
      pairs = [line.rstrip().split('|') for line in part]
      rows = [{'prompt': p, 'completion': c} for p, c in pairs]
      if form == 'jsonl':
        writer = writer or stack.enter_context(open(out, 'w'))
        writer.writelines(json.dumps(row) + '\n' for row in rows)
      else:
        table = pa.Table.from_pylist(rows)
        writer = writer or stack.enter_context(
          parquet.ParquetWriter(out, table.schema)
        )
        writer.write_table(table)
  return out


def _load(
  name: str, cache_dir: str, vocabulary: seqio.Vocabulary
) -> dataset_lib.Dataset:
  return dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': 256, 'targets': 64},
    split='train',
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    vocabulary=vocabulary,
    cache_dir=cache_dir,
  )


def _memory() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--vocabulary', required=True)
  parser.add_argument('--examples', type=int, default=1_000_000)
  parser.add_argument('--form', choices=['lines', 'jsonl', 'parquet'])
  args = parser.parse_args()
  vocabulary = seqio.SentencePieceVocabulary(args.vocabulary)
  pieces = [vocabulary.tokenizer.id_to_piece(i) for i in range(1000, 20_000)]
  words = [p.strip('\u2581') for p in pieces]
  words = [w for w in words if len(w) > 2 and w.isascii() and w.isalpha()]
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'lines.txt')
    _write(path, args.examples, words)
    with open(path) as file:
      lines = [next(file).replace('|', ' ') for _ in range(2000)]
    start = time.time()
    tokens = [vocabulary.tokenizer.encode(line) for line in lines]
    rate = len(lines) / (time.time() - start)
    mean = np.mean([len(t) for t in tokens])
    print(f'tokenizer, one thread: {rate:,.0f} examples/s of {mean:.0f} tokens')
    name = 'benchmark'
    if args.form in ('jsonl', 'parquet'):
      files = {'train': _convert(path, args.form)}
      name = preference_files.supervised(files=files)
    else:
      _add_task(path)
    gc.freeze()  # as python -m ipo_md does
    before = _memory()
    start = time.time()
    _load(name, os.path.join(folder, 'cache'), vocabulary)
    seconds = time.time() - start
    made = args.examples / seconds
    print(f'cache made: {made:,.0f} examples/s, {made / rate:.1f} x that')
    print(f'peak memory: {_memory():.2f} GiB, before it {before:.2f} GiB')
    start = time.time()
    dataset = _load(name, os.path.join(folder, 'cache'), vocabulary)
    print(f'start from the cache: {time.time() - start:.2f} s')
    print(f'prompts: {dataset.examples[0].prompts.lengths.mean():.0f} tokens')
    mesh = jax.make_mesh((1,), ('data',))
    batch = batches.Batches(
      dataset,
      batch_size=32,
      seed=0,
      sharding=jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec('data')
      ),
    )
    batch(0)
    start = time.time()
    for step in range(1, 101):
      batch(step)
    print(f'batch of 32: {(time.time() - start) * 10:.1f} ms')


if __name__ == '__main__':
  main()
