"""Tests of the reference's log-probabilities that are computed once."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from ipo_md import checkpoints
from ipo_md import data
from ipo_md.algorithms import reference_log_probs
from ipo_md.core import sharding
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import examples
from ipo_md.data import prompt_format
from ipo_md.games import tabular
from ipo_md.models import model as model_lib
from ipo_md.sampling import sequences


def _ragged(rows):
  lengths = [len(row) for row in rows]
  return examples.Ragged(
    ids=np.concatenate(rows).astype(np.int32),
    starts=np.concatenate([[0], np.cumsum(lengths)]),
  )


def _dataset(rows=5):
  """K = 2; the second completion of row 1 is missing."""
  targets = [[1 + i % 3, 2][: 1 + j] for i in range(rows) for j in range(2)]
  targets[3] = []
  made = examples.Examples(
    name='made',
    prompts=_ragged([[1 + i % 3] for i in range(rows)]),
    targets=_ragged(targets),
    k=2,
    scores={'preference': np.linspace(0, 1, rows, dtype=np.float32)},
  )
  return dataset_lib.Dataset(
    examples=(made,),
    rates=(1.0,),
    lengths={'inputs': 2, 'targets': 2},
    prompt_format=prompt_format.PromptFormat(),
    prompts_only=False,
    vocabulary=None,
    counts={'examples': rows, 'prompts_cut': 0},
  )


@pytest.fixture
def found():
  """Model, parameters, and log-probabilities in batches of 4."""
  network = functools.partial(
    tabular.Tabular, vocab_size=4, depth=2, prompts=4, stddev=1.0
  )
  model = model_lib.Model(network)
  params = model.init(jax.random.key(0))
  mesh = sharding.make_mesh((2, 2, 2))
  with jax.set_mesh(mesh):
    values = reference_log_probs.log_probs(
      params, model, _dataset(), batch_size=4, mesh=mesh
    )
  return model, params, values


def test_each_row(found):
  model, params, values = found
  dataset = _dataset()
  assert values.shape == (5, 2)
  for i in range(5):
    row = dataset.rows([(0, i)])
    expected, _ = sequences.log_probs(model, params, row.completions)
    np.testing.assert_allclose(values[i], expected[0].sum(-1), rtol=1e-5)
  assert values[1, 1] == 0
  assert (values[0] < 0).all()


def test_attached(found, tmp_path):
  values = found[2]
  path = tmp_path / 'log_probs.npz'
  np.savez(
    path,
    log_prob=values,
    examples=reference_log_probs._fingerprint(_dataset()),
  )
  attached = functools.partial(reference_log_probs.attached, path=str(path))
  rows = attached(dataset=_dataset).rows([(0, 3), (0, 1)])
  np.testing.assert_array_equal(rows.reference_log_prob, values[[3, 1]])
  np.testing.assert_allclose(rows.preference, [0.75, 0.25])
  others = [
    _dataset(rows=6),
    dataclasses.replace(_dataset(), lengths={'inputs': 2, 'targets': 3}),
    dataclasses.replace(
      _dataset(), prompt_format=prompt_format.PromptFormat(suffix=(1,))
    ),
  ]
  for other in others:
    with pytest.raises(ValueError, match='computed on other tokens'):
      attached(dataset=lambda other=other: other)


def test_interrupted_writes_nothing(found, tmp_path, monkeypatch, capsys):
  model, params, values = found
  path = tmp_path / 'log_probs.npz'
  compute = functools.partial(
    reference_log_probs.compute,
    path=str(path),
    reference_checkpoint_path='',
    model=model,
    dataset=_dataset,
    batch_size=4,
    mesh_shape=(2, 2, 2),
  )
  monkeypatch.setattr(data, 'check_vocabulary', lambda *args: None)
  monkeypatch.setattr(checkpoints, 'load_params', lambda *args, **kw: params)

  def interrupted(file, **arrays):
    file.write(b'PK')
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(np, 'savez', interrupted)
    with pytest.raises(KeyboardInterrupt):
      compute()
  assert not path.exists()
  compute()
  assert 'examples 5, prompts_cut 0\n' in capsys.readouterr().out
  attached = reference_log_probs.attached(path=str(path), dataset=_dataset)
  np.testing.assert_allclose(
    attached.examples[0].scores['reference_log_prob'], values, rtol=1e-5
  )
