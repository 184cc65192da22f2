"""The sampler against a brute-force mixture, enumerated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.core import types
from ipo_md.games import tabular
from ipo_md.models import model as model_lib
from ipo_md.sampling import mixture
from ipo_md.sampling import sequences

EOS, V, T = 1, 4, 3
MODEL = model_lib.Model(
  functools.partial(tabular.Tabular, vocab_size=V, depth=T)
)
POLICY = MODEL.init(jax.random.key(0))
REFERENCE = MODEL.init(jax.random.key(1))


def table(params: types.Params) -> np.ndarray:
  return np.asarray(jax.tree.leaves(params)[0][0], np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cut(p: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
  """Top-k, then top-p, of one distribution: by sorting, in plain Python."""
  order = sorted(range(len(p)), key=lambda i: -p[i])
  if top_k:
    order = order[:top_k]
  total = sum(p[i] for i in order)
  kept, mass = [], 0.0
  for i in order:
    if mass >= top_p * total:
      break
    kept.append(i)
    mass += p[i]
  out = np.zeros_like(p)
  out[kept] = p[kept]
  return out / out.sum()


def brute_force(
  b: float, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> dict[tuple[int, ...], float]:
  """Probability of each completion under the token-level mixture."""
  logits = (1 - b) * log_softmax(table(POLICY))
  logits += b * log_softmax(table(REFERENCE))
  steps = np.exp(log_softmax(logits / temperature))
  found = {}
  for ids in itertools.product(range(V), repeat=T):
    ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
    p, node = 1.0, 0
    for token in ids:
      p *= cut(steps[node], top_k, top_p)[token]
      node = V * node + 1 + token
    found[ids] = p
  assert abs(sum(found.values()) - 1) < 1e-12
  return found


def draw(n: int, coefs: tuple[float, ...], seed: int = 0, **controls):
  prompts = types.Tokens(
    ids=jnp.zeros((n, 1), jnp.int32), mask=jnp.ones((n, 1), bool)
  )

  @jax.jit
  def run(policy, reference, rng):
    contexts = MODEL.encode(policy, prompts), MODEL.encode(reference, prompts)
    return mixture.sample(
      MODEL,
      policy,
      reference,
      contexts,
      rng,
      mixture_coefs=coefs,
      max_new_tokens=T,
      **{'eos_id': EOS} | controls,
    )

  return run(POLICY, REFERENCE, jax.random.key(seed))


def frequencies(sampled: mixture.Sampled, k: int) -> dict[tuple, float]:
  ids, mask = np.asarray(sampled.tokens.ids), np.asarray(sampled.tokens.mask)
  counts = {}
  for row, real in zip(ids[:, k], mask[:, k], strict=True):
    key = tuple(int(i) for i in row[real])
    counts[key] = counts.get(key, 0) + 1
  return {key: count / len(ids) for key, count in counts.items()}


def assert_frequencies(found, expected, n):
  """Every completion within 5 standard errors; none of probability 0."""
  assert set(found) <= {key for key, p in expected.items() if p > 0}
  for key, p in expected.items():
    error = np.sqrt(p * (1 - p) / n)
    assert abs(found.get(key, 0.0) - p) <= 5 * error + 1 / n, (key, p)


@pytest.mark.parametrize(
  'coefs', [(0.0,), (0.125, 0.125), (0.0, 0.5), (1.0, 0.0, 0.5)]
)
def test_frequencies_are_the_token_mixture(coefs):
  n = 40_000
  sampled = draw(n, coefs)
  for k, b in enumerate(coefs):
    assert_frequencies(frequencies(sampled, k), brute_force(b), n)


@pytest.mark.parametrize(
  'controls',
  [
    {'temperature': 0.5},
    {'temperature': 2.0},
    {'top_k': 2},
    {'top_p': 0.6},
    {'top_k': 3, 'top_p': 0.8, 'temperature': 1.5},
  ],
)
def test_controls_apply_to_the_mixture(controls):
  n = 20_000
  sampled = draw(n, (0.25, 0.0), **controls)
  for k, b in enumerate((0.25, 0.0)):
    expected = brute_force(b, **controls)
    assert_frequencies(frequencies(sampled, k), expected, n)


def test_greedy_takes_the_likeliest_token_of_the_mixture():
  sampled = draw(3, (0.5, 0.0), temperature=0.0)
  for k, b in enumerate((0.5, 0.0)):
    likeliest = brute_force(b, top_k=1)
    assert frequencies(sampled, k) == {
      key: 1.0 for key, p in likeliest.items() if p == 1
    }


def test_log_probs_are_the_models_own():
  """Of policy and of reference, temperature 1, before any cut; 0 after EOS."""
  sampled = draw(512, (0.3, 0.6), temperature=0.7, top_k=3)
  tables = [log_softmax(table(p)) for p in (POLICY, REFERENCE)]
  for got, log_p in zip(
    (sampled.policy_log_probs, sampled.reference_log_probs),
    tables,
    strict=True,
  ):
    got = np.asarray(got)
    for ids, mask, values in zip(
      np.asarray(sampled.tokens.ids).reshape(-1, T),
      np.asarray(sampled.tokens.mask).reshape(-1, T),
      got.reshape(-1, T),
      strict=True,
    ):
      node = 0
      for token, real, value in zip(ids, mask, values, strict=True):
        expected = log_p[node, token] if real else 0.0
        np.testing.assert_allclose(value, expected, atol=1e-6)
        node = V * node + 1 + token


def test_completions_end_with_eos_or_are_full():
  sampled = draw(512, (0.0, 0.5))
  ids = np.asarray(sampled.tokens.ids).reshape(-1, T)
  mask = np.asarray(sampled.tokens.mask).reshape(-1, T)
  for row, real in zip(ids, mask, strict=True):
    length = real.sum()
    assert real[:length].all()
    assert not (row[: length - 1] == EOS).any()
    assert length == T or row[length - 1] == EOS
    assert (row[length:] == 0).all()


def test_any_of_several_ends_is_the_end():
  ends = (1, 3)
  sampled = draw(512, (0.0, 0.5), eos_id=ends)
  ids = np.asarray(sampled.tokens.ids).reshape(-1, T)
  mask = np.asarray(sampled.tokens.mask).reshape(-1, T)
  last = set()
  for row, real in zip(ids, mask, strict=True):
    length = real.sum()
    assert not np.isin(row[: length - 1], ends).any()
    assert length == T or row[length - 1] in ends
    last.add(int(row[length - 1]))
  assert last >= set(ends)
  found = sequences.ended(sampled.tokens, ends)
  expected = (np.isin(ids, ends) & mask).any(-1).reshape(512, 2)
  np.testing.assert_array_equal(found, expected)


def test_reference_is_not_touched_where_its_coefficient_is_zero():
  """An absent reference is enough; a NaN one leaves the other slot alone."""
  assert draw(2, (0.0, 0.0)).reference_log_probs is None
  assert draw(2, (0.0, 0.5)).reference_log_probs is None
  context = MODEL.encode(
    POLICY,
    types.Tokens(ids=jnp.zeros((8, 1), jnp.int32), mask=jnp.ones((8, 1), bool)),
  )
  sampled = [
    mixture.sample(
      MODEL,
      POLICY,
      reference,
      (context, context),
      jax.random.key(3),
      mixture_coefs=(0.0, 0.5),
      max_new_tokens=T,
      eos_id=EOS,
    ).tokens.ids[:, 0]
    for reference in (
      REFERENCE,
      jax.tree.map(lambda x: x * jnp.nan, REFERENCE),
    )
  ]
  np.testing.assert_array_equal(*sampled)


def test_no_gradient_flows_through_samples():
  prompts = types.Tokens(
    ids=jnp.zeros((4, 1), jnp.int32), mask=jnp.ones((4, 1), bool)
  )

  def total(policy):
    sampled = mixture.sample(
      MODEL,
      policy,
      None,
      (MODEL.encode(policy, prompts), None),
      jax.random.key(0),
      mixture_coefs=(0.0,),
      max_new_tokens=T,
      eos_id=EOS,
    )
    return jnp.sum(sampled.policy_log_probs)

  grads = jax.jvp(total, (POLICY,), (jax.tree.map(jnp.ones_like, POLICY),))[1]
  assert grads == 0


@pytest.mark.parametrize('v', [2, 5, 17, 1000, 32_128])
def test_inverse_cdf_never_draws_weight_zero(v):
  rng = np.random.default_rng(v)
  weights = rng.exponential(size=(64, v)) * (rng.random((64, v)) < 0.3)
  weights[np.arange(64), rng.integers(0, v, 64)] = 1e-30
  draws = jax.vmap(
    lambda key: mixture.inverse_cdf(jnp.array(weights, jnp.float32), key)
  )(jax.random.split(jax.random.key(v), 200))
  assert draws.min() >= 0
  assert draws.max() < v
  assert (weights[np.arange(64), np.asarray(draws)] > 0).all()


def test_inverse_cdf_resolves_what_one_uniform_cannot():
  """1e-9 of the mass sits in the last block: drawn, by its own uniform."""
  v = 100
  weights = np.zeros((1, v), np.float32)
  weights[0, 90:] = np.arange(1, 11) * 1e-9
  n = 20_000
  draws = jax.vmap(lambda key: mixture.inverse_cdf(jnp.array(weights), key))(
    jax.random.split(jax.random.key(0), n)
  )
  p = weights[0, 90:] / weights[0, 90:].sum()
  found = np.bincount(np.asarray(draws)[:, 0], minlength=v)[90:] / n
  assert (np.abs(found - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()


@pytest.mark.parametrize(
  ('arguments', 'name'),
  [
    ({'mixture_coefs': (0.5, 1.5)}, 'MIXTURE_COEFS'),
    ({'mixture_coefs': ()}, 'MIXTURE_COEFS'),
    ({'mixture_coefs': 0.125}, 'MIXTURE_COEFS'),
    ({'mixture_coefs': (0.0, float('nan'))}, 'MIXTURE_COEFS'),
    ({'mixture_coefs': (0.0,), 'temperature': -1.0}, 'TEMPERATURE'),
    ({'mixture_coefs': (0.0,), 'top_k': -1}, 'TOP_K'),
    ({'mixture_coefs': (0.0,), 'top_p': 0.0}, 'TOP_P'),
  ],
)
def test_bad_controls_name_their_gin_parameter(arguments, name):
  with pytest.raises(ValueError, match=name):
    mixture.validate(**arguments)
