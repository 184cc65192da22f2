"""Joining, log-probabilities in chunks, sums and means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.core import types
from ipo_md.games import tabular
from ipo_md.models import model as model_lib
from ipo_md.sampling import sequences


def tokens(*rows: list[int], width: int = 0) -> types.Tokens:
  width = max(width, *(len(r) for r in rows))
  ids = np.array([r + [0] * (width - len(r)) for r in rows], np.int32)
  mask = np.array([[i < len(r) for i in range(width)] for r in rows])
  return types.Tokens(ids=jnp.array(ids), mask=jnp.array(mask))


def as_lists(t: types.Tokens) -> list[list[int]]:
  ids, mask = np.asarray(t.ids), np.asarray(t.mask)
  assert (np.diff(mask.astype(int), axis=-1) <= 0).all(), 'gaps'
  assert (ids[~mask] == 0).all(), 'padding is not 0'
  return [list(map(int, i[m])) for i, m in zip(ids, mask, strict=True)]


def test_join_equals_python_lists_for_any_padding():
  rng = np.random.default_rng(0)
  for length in (9, 12, 30):
    rows = [
      [list(rng.integers(1, 99, rng.integers(0, m + 1))) for m in (3, 8, 4)]
      for _ in range(16)
    ]
    for extra in (0, 5):
      segments = [
        tokens(*(r[i] for r in rows), width=m + (extra if i == 1 else 0))
        for i, m in enumerate((3, 8, 4))
      ]
      joined = sequences.join(segments, length=length, cut=1)
      expected = []
      for a, b, c in rows:
        room = length - len(a) - len(c)
        expected.append(a + b[:room] + c)
      assert joined.ids.shape == (16, length)
      assert as_lists(joined) == expected


def test_join_broadcasts_constants_and_zero_is_a_token():
  constant = types.Tokens(ids=jnp.array([[7, 0]]), mask=jnp.ones((1, 2), bool))
  joined = sequences.join([constant, tokens([1, 2], [3])], length=4, cut=1)
  assert joined.mask.tolist() == [[True] * 4, [True] * 3 + [False]]
  assert joined.ids.tolist() == [[7, 0, 1, 2], [7, 0, 3, 0]]


def test_join_refuses_segments_that_may_not_fit():
  with pytest.raises(ValueError, match='7 tokens do not fit .* 6'):
    sequences.join(
      [tokens([1] * 4), tokens([2] * 9), tokens([3] * 3)], length=6, cut=1
    )


def test_without_drops_special_tokens_in_a_join():
  text = sequences.without(tokens([1, 5, 9, 1], [9, 5]), (1, 2))
  assert as_lists(sequences.join([text], length=4, cut=0)) == [[5, 9], [9, 5]]


@pytest.fixture(name='model')
def model_fixture() -> model_lib.Model:
  return model_lib.Model(
    functools.partial(tabular.Tabular, vocab_size=5, depth=3)
  )


def completions(rng: np.random.Generator) -> types.Completions:
  lengths = rng.integers(1, 4, (4, 2))
  mask = np.arange(3) < lengths[..., None]
  ids = np.where(mask, rng.integers(1, 5, (4, 2, 3)), 0)
  return types.Completions(
    prompts=tokens([0], [0], [0], [0]),
    completions=types.Tokens(
      ids=jnp.array(ids, jnp.int32), mask=jnp.array(mask)
    ),
  )


def test_log_probs_by_hand(model):
  params = model.init(jax.random.key(1))
  given = completions(np.random.default_rng(1))
  log_probs, aux = sequences.log_probs(model, params, given)
  table = np.asarray(jax.tree.leaves(params)[0][0], np.float64)
  table -= np.log(np.exp(table).sum(-1, keepdims=True))
  for b in range(4):
    for k in range(2):
      node = 0
      for t in range(3):
        token = int(given.completions.ids[b, k, t])
        real = bool(given.completions.mask[b, k, t])
        expected = table[node, token] if real else 0.0
        np.testing.assert_allclose(log_probs[b, k, t], expected, rtol=1e-5)
        node = 5 * node + 1 + token
  assert aux == 0


@pytest.mark.parametrize('chunk', [1, 8 * 5, 16 * 5])
def test_chunks_change_neither_values_nor_gradients(model, monkeypatch, chunk):
  params = model.init(jax.random.key(2))
  given = completions(np.random.default_rng(2))

  def total(params):
    return jnp.sum(jnp.square(sequences.log_probs(model, params, given)[0]))

  value, grads = jax.value_and_grad(total)(params)
  monkeypatch.setattr(sequences, 'LOGITS_CHUNK', chunk)
  chunked, chunked_grads = jax.value_and_grad(total)(params)
  np.testing.assert_allclose(chunked, value, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    chunked_grads,
    grads,
  )


def test_chunked_projection_holds_no_full_logits(model, monkeypatch):
  monkeypatch.setattr(sequences, 'LOGITS_CHUNK', 8 * 5)
  params = model.init(jax.random.key(2))
  given = completions(np.random.default_rng(2))

  def loss(params):
    hidden = jnp.zeros((4, 2, 3, 5))
    ids = given.completions.ids
    return sequences.token_log_probs(model, params, hidden, ids)[0].sum()

  shapes = []

  def visit(jaxpr):
    for equation in jaxpr.eqns:
      shapes.extend(v.aval.shape for v in equation.outvars)
      for value in equation.params.values():
        inner = getattr(value, 'jaxpr', value)
        if hasattr(inner, 'eqns'):
          visit(inner)

  visit(jax.make_jaxpr(loss)(params).jaxpr)
  assert (4, 2, 1, 5) in shapes
  assert max(np.prod(s) for s in shapes if s[-1:] == (5,)) <= 4 * 2 * 3 * 5


def test_sum_or_mean_ignores_padding():
  values = jnp.array([[1.0, 2.0, 99.0], [4.0, 99.0, 99.0]])
  mask = jnp.array([[True, True, False], [True, False, False]])
  total = sequences.sum_or_mean(values, mask, per_token=False)
  mean = sequences.sum_or_mean(values, mask, per_token=True)
  np.testing.assert_allclose(total, [3.0, 4.0])
  np.testing.assert_allclose(mean, [1.5, 4.0])


@pytest.mark.parametrize(
  ('longest', 'width'), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)]
)
def test_a_forward_pass_is_as_wide_as_the_longest_completion(
  monkeypatch, longest, width
):
  monkeypatch.setattr(sequences, 'LEAST_WIDTH', 2)
  lengths = jnp.array([[1, longest], [0, 1]])
  mask = jnp.arange(8) < lengths[..., None]
  given = types.Completions(
    prompts=tokens([1], [1]),
    completions=types.Tokens(ids=mask.astype(jnp.int32), mask=mask),
  )

  def widths(given):
    ids = given.completions.ids
    return ids.sum(axis=-1), jnp.int32(ids.shape[-1])

  found, used = jax.jit(lambda given: sequences.at_real_length(widths, given))(
    given
  )
  np.testing.assert_array_equal(found, lengths)
  assert used == width
