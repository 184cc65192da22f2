"""launch/gke.py against a fake gcloud, xpk and kubectl (tests/testdata/bin)."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.launch import checkout

_PLAN = {
  'project': 'p',
  'compute/zone': 'us-west4-a',
}
_WHERE = ['--project=p', '--zone=us-west4-a']


@pytest.fixture
def call(tmp_path):
  """Runs gke.py in a copy; returns exit code, output and the calls of XPK."""
  fake, root = tmp_path / 'fake', tmp_path / 'root'
  fake.mkdir()
  checkout.make(root, {'_PAUSE = 20': '_PAUSE = 0'})
  commit = checkout.commit(root)

  def call(*words: str, path=f'{checkout.FAKES}:{os.environ["PATH"]}', **plan):
    (fake / 'plan.json').write_text(json.dumps({**_PLAN, **plan}))
    done = subprocess.run(
      [sys.executable, root / 'launch' / 'gke.py', *words],
      env={**os.environ, 'FAKE': str(fake), 'PATH': path},
      capture_output=True,
      text=True,
    )
    recorded = fake / 'xpk.jsonl'
    lines = recorded.read_text().splitlines() if recorded.exists() else []
    calls = [json.loads(line) for line in lines]
    return done.returncode, done.stdout + done.stderr, calls

  call.fake, call.image, call.commit = fake, fake / 'image', commit
  return call


_RUN = [
  *('run', 'ipo_tau0.1', '--cluster=pods', '--tpu=v5e:4x4', '--image=image'),
  *('--bucket=gs://bucket', '--priority=high', '--project-number=12'),
  *('--', 'python', '-m', 'ipo_md', '--gin.TAU=0.1'),
]
_DELETE = 'kubectl --context=gke_p_us-west4_pods --namespace=default delete'


def test_run_ships_the_commit_and_waits_for_the_end(call):
  code, output, (created,) = call(*_RUN)
  assert code == 0, output
  assert created[:2] == ['workload', 'create']
  assert {
    '--workload=ipo-tau0-1',
    '--cluster=pods',
    *_WHERE,
    '--tpu-type=v5litepod-16',
    '--base-docker-image=image',
    '--max-restarts=100',
    '--env=TFDS_DATA_DIR=gs://bucket/data',
    '--command=exec python launch/google_cloud/worker.py -- '
    'python -m ipo_md --gin.TAU=0.1',
    '--priority=high',
    '--project-number=12',
  } <= set(created)
  assert (call.image / 'launch/google_cloud/worker.py').exists()
  assert (call.image / 'COMMIT').read_text() == f'{call.commit}\n'


@pytest.mark.parametrize(
  ('plan', 'message', 'calls'),
  [
    (
      {'workload create': 1},
      'create failed (1). Nothing was created.',
      1,
    ),
    (
      {'workload create': 2},
      'create failed (2). jobset.jobset.x-k8s.io "ipo-tau0-1" deleted',
      1,
    ),
    (
      {'workload create': 2, 'kubectl delete': 1},
      f'{_DELETE} jobset ipo-tau0-1',
      1,
    ),
    ({'states': ['', 'Failed']}, 'ipo-tau0-1 did not succeed; the logs of', 1),
    ({'kubectl get': 1}, 'Unable to connect to the server', 0),
    ({'location': ''}, 'There is no cluster pods: `xpk cluster create`', 0),
    ({'forbidden': True}, 'gs://bucket cannot be written. Nothing was', 0),
    ({'project': '(unset)'}, 'No project is set: give --project=', 0),
  ],
)
def test_a_run_that_fails_says_so(call, plan, message, calls):
  code, output, called = call(*_RUN, **plan)
  assert code == 1
  assert message in output
  assert len(called) == calls


@pytest.mark.parametrize('other', ['Failed', ''])
def test_a_workload_whose_name_begins_alike_is_another_one(call, other):
  """XPK waits for the first name that it finds."""
  jobsets = {'ipo-tau0-1-b': [other], 'a-ipo-tau0-1': [other]}
  (call.fake / 'jobsets.json').write_text(json.dumps(jobsets))
  code, output, called = call(*_RUN, states=['', '', 'Completed'])
  assert code == 0, output
  assert [words[1] for words in called] == ['create']


@pytest.mark.parametrize(
  ('states', 'actions'),
  [(['', 'Completed'], []), (['Completed'], ['create'])],
)
def test_a_workload_that_is_there_is_waited_for_or_made_anew(
  call, states, actions
):
  jobsets = {'ipo-tau0-1': states}
  (call.fake / 'jobsets.json').write_text(json.dumps(jobsets))
  code, output, called = call(*_RUN)
  assert code == 0, output
  assert [words[1] for words in called] == actions


def test_a_workload_that_someone_deletes_is_no_success(call):
  code, output, _ = call(*_RUN, states=[])
  assert (code, 'ipo-tau0-1 was deleted' in output) == (1, True), output


def test_a_dry_run_prints_commands_that_can_be_run(call, tmp_path, monkeypatch):
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  words = [*_RUN[:5], '--dry_run', *_RUN[5:]]
  code, output, called = call(*words)
  assert (code, called) == (0, []), output
  assert not (call.fake / 'gs').exists()
  commands = tmp_path / 'commands'
  start = output.index('mkdir -p')
  commands.write_text(output[start : output.index('kubectl', start)])
  done = subprocess.run(
    ['bash', '-e', commands],
    env=os.environ
    | {'FAKE': str(call.fake)}
    | {'PATH': f'{checkout.FAKES}:{os.environ["PATH"]}'},
  )
  assert done.returncode == 0, output
  assert (call.image / 'COMMIT').read_text() == f'{call.commit}\n'
  assert (call.image / 'launch/google_cloud/worker.py').exists()


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (["--gin.MODEL_DIR='/tmp/x'"], 'MODEL_DIR = /tmp/x is on a disk that is'),
    (['--gin.MODEL_DIR=/tmp/x'], 'MODEL_DIR = /tmp/x is on a disk that is'),
    (['--gin.MODEL_DIR=gs://BUCKET/x'], 'gs://BUCKET is no bucket'),
    (["--gin.A='gs://$BUCKET/x'"], 'gs://$BUCKET is no bucket'),
  ],
)
def test_what_would_be_lost_is_refused(call, words, message):
  code, output, called = call(*_RUN, *words)
  assert (code, called) == (1, []), output
  assert message in output
  assert not (call.fake / 'gs').exists()


def test_a_mounted_disk_may_hold_model_dir(call):
  words = [*_RUN[:5], '--storage=disk', *_RUN[5:], '--gin.MODEL_DIR=/disk/x']
  code, output, _ = call(*words)
  assert code == 0, output


@pytest.mark.parametrize(
  ('tpu', 'mesh', 'named'),
  [
    ('tpu7x:2x2x1', '(1,8,1)', 'tpu7x-8'),
    ('v5p:16x16x24', '(1,6144,1)', 'v5p-12288'),
    ('v5p:4x4x16', '(1,256,1)', 'v5p-4x4x16'),
  ],
)
def test_larger_cubes_and_the_seventh_generation_are_run(
  call, tpu, mesh, named
):
  words = [f'--tpu={tpu}' if '--tpu' in word else word for word in _RUN]
  code, output, (created,) = call(*words, f'--gin.MESH_SHAPE={mesh}')
  assert code == 0, output
  assert f'--tpu-type={named}' in created
  code, output, _ = call(*words, '--gin.MESH_SHAPE=(1,3,1)')
  assert 'does not match the' in output


def test_without_xpk_nothing_is_written(call, tmp_path):
  (tmp_path / 'bin').mkdir()
  for program in ('git', 'env'):
    (tmp_path / 'bin' / program).symlink_to(shutil.which(program))
  (tmp_path / 'bin' / 'python3').symlink_to(os.path.realpath(sys.executable))
  (tmp_path / 'bin' / 'gcloud').symlink_to(checkout.FAKES / 'gcloud')
  code, output, _ = call(*_RUN, path=str(tmp_path / 'bin'))
  assert code == 1
  assert 'xpk is not installed' in output
  assert not (tmp_path / 'fake' / 'gs').exists()


@pytest.mark.parametrize('action', ['workload create', 'kubectl get'])
def test_what_ctrl_c_may_leave_is_named(call, action):
  code, output, _ = call(*_RUN, interrupt=action)
  assert code == 130
  assert f'{_DELETE} jobset ipo-tau0-1' in output
