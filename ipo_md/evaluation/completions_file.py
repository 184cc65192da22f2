"""The lines of completions.jsonl that `infer` writes.

A line holds the completions of one prompt; lines have the order of the prompts:

  {"index": 0, "prompt": "...", "completions": [
    {"text": "...", "tokens": 17, "ended": true, "log_prob": -21.3,
     "reference_log_prob": -22.8}, ...]}

Log-probabilities are sums in nats at temperature 1.
"""

from collections.abc import Sequence
import json

from etils import epath
import jax
import numpy as np

from ipo_md.core import types

NAME = 'completions.jsonl'


def lines(
  drawn: tuple[types.Tokens, np.ndarray, np.ndarray | None],
  prompts: Sequence[np.ndarray],
  first: int,
  vocabulary: types.Vocabulary,
  eos_id: types.EosId,
) -> list[str]:
  """Formats the completions of a batch of prompts.

  Args:
    drawn: Completions [B, K, T], their log-probabilities [B, K], and those of
      the reference [B, K] or None. Rows beyond the last prompt are ignored.
    prompts: Tokens of all prompts.
    first: Number of the first prompt of the batch.
    vocabulary: Vocabulary of the tokens.
    eos_id: Token that ends a completion, or several.

  Returns:
    A line for each prompt of the batch.
  """
  tokens, log_prob, reference_log_prob = drawn
  decode = lambda ids: vocabulary.decode(ids.tolist())
  found = []
  for row, prompt in enumerate(prompts[first : first + len(log_prob)]):
    completions = []
    for k, mask in enumerate(tokens.mask[row]):
      ids = tokens.ids[row, k][mask]
      ends = np.isin(ids, types.eos_ids(eos_id))
      completion = {
        'text': decode(ids[~ends]),
        'tokens': len(ids),
        'ended': bool(np.any(ends)),
        'log_prob': float(log_prob[row, k]),
      }
      if reference_log_prob is not None:
        completion['reference_log_prob'] = float(reference_log_prob[row, k])
      completions.append(completion)
    line = {
      'index': first + row,
      'prompt': decode(prompt),
      'completions': completions,
    }
    found.append(json.dumps(line, ensure_ascii=False) + '\n')
  return found


def count_whole_lines(path: epath.Path) -> int:
  """Counts the lines that a killed run left, and removes an incomplete one."""
  if not path.exists():
    return 0
  content = path.read_bytes()
  whole = content[: content.rfind(b'\n') + 1]
  if whole != content and jax.process_index() == 0:
    path.write_bytes(whole)
  return whole.count(b'\n')
