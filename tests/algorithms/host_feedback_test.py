"""Feedback over the host: the online step in two programs, and a whole run."""

import functools
import http.server
import json
import pathlib
import threading

from absl import flags
import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipo_md import __main__ as main
from ipo_md.algorithms import host_feedback
from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.algorithms import offline
from ipo_md.algorithms import online as online_lib
from ipo_md.checkpoints import load
from ipo_md.checkpoints import manager
from ipo_md.core import gin_config
from ipo_md.core import metrics
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.data import batches
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.judges import host
from ipo_md.judges import learned
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.sampling import sampler
from tasks.mini_tldr import tasks
from tests import command_line

pytestmark = pytest.mark.slow

MODEL = model_lib.Model(
  functools.partial(
    t5.T5,
    vocab_size=tasks.VOCABULARY.vocab_size,
    mlp_activations=('gelu', 'linear'),
    logits_via_embedding=False,
    dropout_rate=0.0,
    scan=False,
    **command_line.SIZES,
  )
)
SAMPLING = {
  'mixture_coefs': (0.0, 0.5),
  'sampler': sampler.Sampler(max_new_tokens=6, eos_id=1, temperature=0.9),
}
LOSS = functools.partial(losses.ipo, tau=1.0)


def save(path, seed):
  params = MODEL.init(jax.random.key(seed))
  state = types.TrainState(step=jnp.int32(1), params=params, opt_state=())
  with manager.open_manager(path, keep=manager.Keep()) as saved:
    manager.save(saved, state, tasks.VOCABULARY)
    manager.wait(saved)
  return params


@pytest.mark.parametrize(
  ('loss', 'changes', 'reward'),
  [
    (LOSS, {}, None),
    (
      functools.partial(losses.nca, beta=0.1, alpha=1.0),
      {'mixture_coefs': (0.0, 0.0, 0.0)},
      -40.0,
    ),
    (
      functools.partial(losses.reinforce, tau=0.1),
      {'mixture_coefs': (0.0,)},
      None,
    ),
  ],
)
def test_it_is_the_online_step_where_the_judges_are_one(
  tmp_path, loss, changes, reward
):
  judge_params = save(str(tmp_path / 'judge'), 2)
  judge = functools.partial(learned.likelihood, model=MODEL)
  dataset = dataset_lib.load(
    mixture_or_task_name='mini_tldr_prompts',
    task_feature_lengths={'inputs': 74},
    split='validation',
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    prompts_only=True,
  )
  optimizer = optax.adam(1e-2)
  params = MODEL.init(jax.random.key(0))
  make = lambda: types.TrainState(
    step=jnp.int32(0),
    params=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.init(params),
  )
  frozen = types.FrozenParams(
    reference=MODEL.init(jax.random.key(1)), judge=judge_params
  )
  common = {'model': MODEL, 'optimizer': optimizer, 'loss': loss}
  settings = SAMPLING | changes
  feedback = functools.partial(objective.Feedback, truncation_reward=reward)
  mesh = sharding.make_mesh((1, -1, 1))
  with jax.set_mesh(mesh):
    (prompts, _), *_ = batches.in_order(
      dataset, batch_size=8, sharding=sharding.batch(mesh), limit=8
    )
    online = jax.jit(
      functools.partial(
        online_lib.online_step,
        feedback=feedback(judge=judge),
        **common,
        **settings,
      )
    )
    expected, theirs = online(make(), frozen, prompts, jax.random.key(3))
    step = host_feedback.two_programs(
      functools.partial(
        offline.offline_step,
        **common,
        sampled_with=settings['mixture_coefs'],
      ),
      model=MODEL,
      dataset=dataset,
      state_sharding=None,
      feedback=feedback(
        judge=host.LearnedJudge(
          judge=judge,
          model=MODEL,
          checkpoint_path=str(tmp_path / 'judge'),
          batch_size=8,
          label=None,
        )
      ),
      **settings,
    )
    found, ours = step(make(), frozen, prompts, jax.random.key(3))
  # Two programs do not compare themselves.
  theirs.pop('sampling_error', None)
  for name in theirs:
    np.testing.assert_allclose(
      float(ours[name]), float(theirs[name]), rtol=1e-4, err_msg=name
    )
  moved = jax.tree.map(lambda a, b: a - b, expected.params, params)
  assert max(np.abs(x).max() for x in jax.tree.leaves(moved)) > 5e-3
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    found.params,
    expected.params,
  )


def test_samples_have_to_be_those_that_the_loss_needs():
  step = functools.partial(
    offline.offline_step,
    None,
    None,
    None,
    None,
    model=MODEL,
    loss=functools.partial(losses.policy_gradient, tau=0.1),
    optimizer=None,
  )
  with pytest.raises(ValueError, match='which an offline run does not draw'):
    step()
  with pytest.raises(ValueError, match=r'MIXTURE_COEFS is \(0.5, 0.0\)'):
    step(sampled_with=(0.5, 0.0))


def test_a_moving_average_is_refused():
  state = types.TrainState(
    step=0, params={}, opt_state=(), players={'average': {}}
  )
  with pytest.raises(
    ValueError, match='training.Start.players = average: a judge'
  ):
    host_feedback.two_programs(
      None,
      model=MODEL,
      dataset=None,
      state_sharding=None,
      example=(state, None, None, None),
      feedback=objective.Feedback(judge=host.TextJudge(lambda *_: 0.5)),
      **SAMPLING,
    )


@pytest.mark.parametrize(
  ('feedback', 'changes', 'message'),
  [
    ({}, {'mixture_coefs': (0.0,)}, 'MIXTURE_COEFS.*2 completions'),
    ({}, {'mixture_coefs': (0.0,) * 3}, 'MIXTURE_COEFS.*2 completions'),
    ({'truncation_reward': 0.0}, {}, 'TRUNCATION_REWARD.*preferences alone'),
  ],
)
def test_it_takes_pairs_of_a_judge_that_compares(feedback, changes, message):
  with pytest.raises(ValueError, match=message):
    host_feedback.two_programs(
      None,
      model=MODEL,
      dataset=None,
      state_sharding=None,
      feedback=objective.Feedback(
        judge=host.TextJudge(lambda prompt, y_1, y_2: 0.5), **feedback
      ),
      **SAMPLING | changes,
    )


class Rater(http.server.BaseHTTPRequestHandler):
  """Likes the summary with more letters e."""

  asked = []

  def log_message(self, *args):
    pass

  def do_POST(self):
    body = self.rfile.read(int(self.headers['Content-Length']))
    prompt = json.loads(body)['messages'][0]['content']
    self.asked.append(prompt)
    _, first, second = prompt.split(' ### ')
    text = '1' if first.count('e') > second.count('e') else '2'
    answer = {'choices': [{'message': {'content': text}}]}
    content = json.dumps(answer).encode()
    self.send_response(200)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)


@pytest.fixture(name='url')
def url_fixture():
  with http.server.ThreadingHTTPServer(('localhost', 0), Rater) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f'http://localhost:{server.server_port}'
    server.shutdown()
    thread.join()


@pytest.fixture(name='run')
def run_fixture(monkeypatch, tmp_path, url):
  """Runs gin/algorithms/oaif.gin; further bindings by name."""
  monkeypatch.setattr(main, 'start_processes', lambda: None)
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  save(str(tmp_path / 'policy'), 0)
  files = (
    'runs/online',
    'models/t5_tiny',
    'tasks/mini_tldr',
    'judges/http',
    'algorithms/oaif',
  )

  def run(name, **changes):
    bindings = {
      'MODEL_DIR': f"'{tmp_path / name}'",
      'INITIAL_CHECKPOINT_PATH': f"'{tmp_path / 'policy'}'",
      'BASE_URL': f"'{url}'",
      'RATER': "'rater'",
      'RATER_CACHE': f"'{tmp_path / 'answers.sqlite'}'",
      'RATER_PROMPT': "'{text} ### {first} ### {second}'",
      'API_KEY_VARIABLE': None,
      'MAX_NEW_TOKENS': 8,
      'BATCH_SIZE': 8,
      'LOG_PERIOD': 1,
      'CHECKPOINT_PERIOD': 0,
      'LEARNING_RATE': 0.01,
      'data.load.split': "'validation'",
      **{
        f'models.T5.{size}': value for size, value in command_line.SIZES.items()
      },
    } | changes
    gin.clear_config()
    for flag in ('gin_file', 'gin_bindings'):
      flags.FLAGS[flag].unparse()
    args = [f'--gin_file=gin/{file}.gin' for file in files]
    args += [f'--gin.{key}={value}' for key, value in bindings.items()]
    flags.FLAGS(gin_config.rewrite_gin_args(['ipo_md', *args]))
    main.run(['ipo_md'])
    return tmp_path / name

  yield run
  gin.clear_config()


def test_a_resumed_run_is_the_same_run(run, capsys):
  whole = run('whole', TRAIN_STEPS=4)
  asked = len(Rater.asked)
  assert asked > 8
  assert 'questions to rater, ' in capsys.readouterr().out
  run('parts', TRAIN_STEPS=2)
  parts = run('parts', TRAIN_STEPS=4)
  assert len(Rater.asked) == asked  # all answers were kept
  a, b = (metrics.read_metrics(str(folder)) for folder in (whole, parts))
  for step in range(1, 5):
    for name in ('loss', 'grad_norm', 'preference', 'length'):
      assert a[step][name] == b[step][name]
  first, second = (
    load.load_params(
      str(folder), MODEL, sharding.make_mesh((1, -1, 1)), name=''
    )
    for folder in (whole, parts)
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)
  assert pathlib.Path(whole, 'COMPLETED').exists()
