"""Breaks the code on purpose and says which test notices.

    python tests/mutants.py [NAME ...]

Each mutation of an objective or of the sampler is applied to a copy of the
package, and the tests named beside it run on the copy. The first failing test
is printed. Mutations that change nothing are applied too, with the reason.
The exit code is 1 if a mutation is not noticed, or if one that changes nothing
is.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Mutant:
  """Replaces `old` by `new` in `file`, wherever it stands.

  Attributes:
    file: Path below ipo_md.
    old: Text of the code.
    new: Text that replaces it.
    tests: Arguments of pytest.
    harmless: Reason why the mutation changes nothing. None if it does.
  """

  file: str
  old: str
  new: str
  tests: str
  harmless: str | None = None


MUTANTS = {
  'policy_gradient: advantage without stop-gradient': Mutant(
    'algorithms/losses.py',
    'jax.lax.stop_gradient(preference - 0.5 - tau * rho_1)',
    '(preference - 0.5 - tau * rho_1)',
    'tests/algorithms/losses_test.py -k by_hand',
  ),
  'reinforce: advantage without stop-gradient': Mutant(
    'algorithms/losses.py',
    'jax.lax.stop_gradient(advantage)',
    'advantage',
    'tests/algorithms/losses_test.py -k by_hand',
  ),
  'ipo: 1/(2 tau) -> 1/tau': Mutant(
    'algorithms/losses.py',
    'margin = 1 / (2 * tau)',
    'margin = 1 / tau',
    'tests/games/exact_test.py -k online_ipo',
  ),
  'pairwise losses: p -> 1 - p': Mutant(
    'algorithms/losses.py',
    'preference * loss(h) + (1 - preference) * loss(-h)',
    '(1 - preference) * loss(h) + preference * loss(-h)',
    'tests/games/exact_test.py -k online_ipo',
  ),
  'policy_gradient: p -> 1 - p': Mutant(
    'algorithms/losses.py',
    'stop_gradient(preference - 0.5',
    'stop_gradient(0.5 - preference',
    'tests/games/exact_test.py -k climbs_against',
  ),
  'sampler: b -> 1 - b': Mutant(
    'sampling/mixture.py',
    '(1 - weight) * logits[0][:, mixed] + weight * logits[1]',
    'weight * logits[0][:, mixed] + (1 - weight) * logits[1]',
    'tests/games/truth_test.py -k "cyclic and IPO-MD"',
  ),
  'sampler: one cache for both models': Mutant(
    'sampling/mixture.py',
    'caches=tuple(caches)',
    'caches=(caches[0],) * len(caches)',
    'tests/games/truth_test.py -k own_cache',
  ),
  'sampler: no stop-gradient on the models': Mutant(
    'sampling/mixture.py',
    'in jax.lax.stop_gradient(models)',
    'in models',
    'tests/games/truth_test.py -k mean_gradient',
    harmless='A loss reads the ids of samples and log-probabilities of the'
    ' reference, which have no gradient in the policy. The line serves other'
    ' callers (mixture_test).',
  ),
  'policy_gradient: the 1/2 dropped': Mutant(
    'algorithms/losses.py',
    'preference - 0.5 - tau * rho_1',
    'preference - tau * rho_1',
    'tests/algorithms/losses_test.py -k by_hand',
  ),
  'nca: 1/K dropped': Mutant(
    'algorithms/losses.py',
    ' / jnp.maximum(count, 1)',
    '',
    'tests/algorithms/losses_test.py -k by_hand',
  ),
  'reinforce: each is in its own baseline': Mutant(
    'algorithms/losses.py',
    'axis=1, keepdims=True) - advantage',
    'axis=1, keepdims=True)',
    'tests/algorithms/losses_test.py -k by_hand',
  ),
  'nca, info_nca: the first of a tie takes it all': Mutant(
    'algorithms/losses.py',
    'jnp.where(jnp.isnan(gap), gap, gap == 0)',
    'jax.nn.one_hot(jnp.argmax(gap, axis=1), gap.shape[1])',
    'tests/algorithms/losses_test.py -k by_hand',
  ),
  'hard_label: a tie goes to the first': Mutant(
    'algorithms/losses.py',
    '(jnp.sign(preference - 0.5) + 1) / 2',
    'jnp.where(preference >= 0.5, 1.0, 0.0)',
    'tests/algorithms/losses_test.py -k labels',
  ),
  'step: the reference is the moving policy': Mutant(
    'algorithms/online.py',
    'players.policies(model, state, frozen)',
    'players.policies(model, state, frozen.replace(reference=state.params))',
    'tests/games/truth_test.py -k "mean_gradient and RL"',
  ),
  'step: the policy plays against itself, not the reference': Mutant(
    'algorithms/players.py',
    "{'reference': frozen.reference}",
    "{'reference': state.params}",
    'tests/games/truth_test.py -k "cyclic and IPO-MD"',
  ),
  'players: a snapshot that is never refreshed': Mutant(
    'algorithms/players.py',
    'state.step % steps == 0',
    'state.step < 0',
    'tests/algorithms/players_test.py -k refreshed',
  ),
  'anchors: snapshot and reference swapped': Mutant(
    'algorithms/objective.py',
    'for anchor in needed.anchors\n',
    'for anchor in needed.anchors[::-1]\n',
    'tests/games/iterative_test.py -k "mean_gradient and INPO"',
  ),
  'matrix: transposed': Mutant(
    'algorithms/objective.py',
    'jax.nn.sigmoid(r[:, :, None] - r[:, None])',
    'jax.nn.sigmoid(r[:, None] - r[:, :, None])',
    'tests/algorithms/players_test.py -k matrix',
  ),
  'extragradient: the half step applied twice': Mutant(
    'optim/extragradients.py',
    'collected.opt_state, state)',
    'collected.opt_state, ahead)',
    'tests/optim/extragradients_test.py',
  ),
  'lora: adapters left on in the reference': Mutant(
    'models/lora.py',
    "return flax.traverse_util.unflatten_dict(flat, sep='/')",
    "frozen.reference.update(flax.traverse_util.unflatten_dict(flat, sep='/'))"
    '\n    return frozen.reference',
    'tests/models/lora_test.py -k reference_does_not_see',
  ),
  'expectation, policy_gradient: the 1/2 dropped': Mutant(
    'algorithms/losses.py',
    'preference - 0.5 - tau * rho_1',
    'preference - tau * rho_1',
    'tests/games/exact_test.py -k climbs_against',
    harmless='E grad log pi(y_1) = 0 for y_1 ~ pi, so that a constant in the'
    ' advantage changes only the variance.',
  ),
  'expectation, reinforce: no baseline': Mutant(
    'algorithms/losses.py',
    'advantage -= others / (k - 1)',
    'pass',
    'tests/games/exact_test.py -k climbs_the_regularised',
    harmless='The baseline of y_i does not depend on y_i.',
  ),
  'policy_gradient: log pi(y_1) for rho_1 in front': Mutant(
    'algorithms/losses.py',
    '-rho_1 * jax.lax.stop_gradient(',
    '-(rho_1 + 1) * jax.lax.stop_gradient(',
    'tests/games/exact_test.py -k climbs_against',
    harmless='log pi_ref has no gradient: the two differ by a constant.',
  ),
}


def first_failure(mutant: Mutant, copy: pathlib.Path) -> str | None:
  """Returns the first test that notices a mutant, or None."""
  path = copy / 'ipo_md' / mutant.file
  code = path.read_text()
  if mutant.old not in code:
    raise ValueError(f'{mutant.file} no longer says {mutant.old!r}.')
  path.write_text(code.replace(mutant.old, mutant.new))
  try:
    done = subprocess.run(
      f'{sys.executable} -m pytest -x -q --tb=no {mutant.tests}',
      shell=True,
      cwd=copy,
      env=os.environ | {'PYTHONPATH': str(copy), 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=False,
    )
  finally:
    path.write_text(code)
  if done.returncode == 0:
    return None
  failed = re.search(r'^FAILED (.+?)( - |$)', done.stdout, re.MULTILINE)
  if done.returncode != 1 or failed is None:
    raise RuntimeError(f'The tests did not run:\n{done.stdout}{done.stderr}')
  return failed.group(1)


def main(wanted: list[str]) -> int:
  wrong = 0
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder)
    for name in ('ipo_md', 'tests'):
      shutil.copytree(ROOT / name, copy / name)
    shutil.copy(ROOT / 'pyproject.toml', copy)
    for name, mutant in MUTANTS.items():
      if wanted and not any(w in name for w in wanted):
        continue
      test = first_failure(mutant, copy)
      wrong += (test is None) != (mutant.harmless is not None)
      if test is not None:
        print(f'{name}\n    fails {test}', flush=True)
      elif mutant.harmless is not None:
        print(f'{name}\n    changes nothing: {mutant.harmless}', flush=True)
      else:
        print(f'{name}\n    NOT NOTICED by {mutant.tests}', flush=True)
  return int(wrong > 0)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
