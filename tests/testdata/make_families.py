"""Computes what transformers makes of the folders of checkpoints/families.py.

In an environment with torch 2.13 (CPU), transformers 5 and safetensors, from
the root of the repository:

  python -m tests.testdata.make_families            # writes families.npz
  python -m tests.testdata.make_families DIR        # compares exports

DIR has one exported checkpoint of every family, which this writes with the
environment of the tests:

  python -m tests.checkpoints.export_families DIR

Its log-probabilities must be those of the original, bit for bit.
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

from tests.checkpoints import families

OUTPUT = pathlib.Path(__file__).with_name('families.npz')


def load(path, family):
  """Loads a folder, all of whose arrays the model must have."""
  auto = transformers.AutoModelForCausalLM
  if families.is_t5(family):
    auto = transformers.AutoModelForSeq2SeqLM
  model, info = auto.from_pretrained(
    path,
    dtype=torch.float32,
    attn_implementation='eager',
    output_loading_info=True,
  )
  problems = {
    key: value
    for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')
    if (value := [k for k in info[key] if 'embed_tokens' not in str(k)])
  }
  # The second table of a T5 1.0 and heads that are tied are no arrays.
  assert not problems, (family, problems)
  return model.eval()


@torch.no_grad()
def logits(model, family, prompt, completion):
  """Returns the logits [T, V] of every token of a completion."""
  if families.is_t5(family):
    inputs = torch.tensor([[0, *completion[:-1]]])
    return model(
      input_ids=torch.tensor([prompt]), decoder_input_ids=inputs
    ).logits[0]
  ids = torch.tensor([[*prompt, *completion[:-1]]])
  return model(input_ids=ids).logits[0, len(prompt) - 1 :]


def greedy(model, family, prompt):
  tokens = []
  for _ in range(families.NEW):
    last = logits(model, family, prompt, [*tokens, 0])[-1]
    tokens.append(int(last.argmax()))
  return tokens


def expected(model, family):
  prompts, mask, completions = families.texts()
  log_probs, decoded = [], []
  for prompt, real, completion in zip(prompts, mask, completions, strict=True):
    ids = prompt[real].tolist()
    found = logits(model, family, ids, completion.tolist()).log_softmax(-1)
    log_probs.append(found[range(families.NEW), completion].numpy())
    decoded.append(greedy(model, family, ids))
  return np.array(log_probs), np.array(decoded)


def main():
  found = {}
  for family in families.CONFIGS:
    with tempfile.TemporaryDirectory() as folder:
      path = families.write(family, pathlib.Path(folder))
      model = load(path, family)
      log_probs, decoded = expected(model, family)
      if len(sys.argv) > 1:
        again = expected(load(f'{sys.argv[1]}/{family}', family), family)
        difference = np.max(np.abs(again[0] - log_probs))
        print(family, 'difference', difference)
        # A Phi-3 of another layout multiplies its kernels one by one.
        assert difference <= (1e-6 if family == 'phi3' else 0)
        continue
    print(family, log_probs.mean(), decoded[0])
    found[f'{family}/log_probs'] = log_probs
    found[f'{family}/greedy'] = decoded
  if found:
    np.savez_compressed(OUTPUT, **found)


if __name__ == '__main__':
  main()
