"""launch/gke.py against a fake gcloud and a fake xpk (tests/testdata/bin)."""

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
  'types': ['v5litepod-16', 'v5litepod-256'],
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

  call.image, call.commit = fake / 'image', commit
  return call


_RUN = [
  *('run', 'ipo_tau0.1', '--cluster=pods', '--tpu=v5e:4x4', '--image=image'),
  *('--bucket=gs://bucket', '--', 'python', '-m', 'ipo_md', '--gin.TAU=0.1'),
]


def test_run_ships_the_commit_and_waits_for_the_end(call):
  code, output, (_, created, waited) = call(*_RUN)
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
  } <= set(created)
  assert waited[:2] == ['workload', 'list']
  assert waited[-1] == '--wait-for-job-completion=ipo-tau0-1'
  assert (call.image / 'launch/google_cloud/worker.py').exists()
  assert (call.image / 'COMMIT').read_text() == f'{call.commit}\n'


@pytest.mark.parametrize(
  ('plan', 'message', 'calls'),
  [
    (
      {'workload create': 1},
      'create failed (1). Deleted, nothing is running: ipo-tau0-1.',
      3,
    ),
    (
      {'workload create': 1, 'workload delete': 1},
      'It may still exist: `python launch/gke.py stop ipo-tau0-1 --cluster=',
      3,
    ),
    ({'workload wait': 125}, 'ipo-tau0-1 did not succeed; `logs` says why', 3),
    ({'workload wait': 1}, 'As far as is known, ipo-tau0-1 is still', 7),
    ({'types': ['v5litepod-8']}, 'v5litepod-16 is not offered in this zone', 0),
    ({'forbidden': True}, 'gs://bucket cannot be written. Nothing was', 0),
    ({'project': '(unset)'}, 'No project is set: give --project=', 0),
  ],
)
def test_a_run_that_fails_says_so(call, plan, message, calls):
  code, output, called = call(*_RUN, **plan)
  assert code == 1
  assert message in output
  assert len(called) == calls


@pytest.mark.parametrize(
  ('state', 'actions'),
  [('Admitted', ['list', 'list']), ('Finished', ['list', 'delete', 'create'])],
)
def test_a_workload_that_is_there_is_waited_for_or_made_anew(
  call, state, actions
):
  table = f'Jobset Name  Status\nipo-tau0-1-b  Failed\nipo-tau0-1  {state}'
  code, output, called = call(*_RUN, workloads=table)
  assert code == 0, output
  assert [words[1] for words in called][: len(actions)] == actions


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


@pytest.mark.parametrize(
  ('words', 'action', 'named'),
  [
    (_RUN, 'workload create', 'stop ipo-tau0-1 --cluster=pods --project=p'),
    (_RUN, 'workload wait', 'stop ipo-tau0-1 --cluster=pods --project=p'),
    (
      ['create', 'c', '--tpu=v5e:4x4'],
      'cluster create',
      'delete c --project=p',
    ),
  ],
)
def test_what_ctrl_c_may_leave_is_named(call, words, action, named):
  code, output, _ = call(*words, interrupt=action)
  assert code == 130
  assert f'`python launch/gke.py {named} --zone=us-west4-a`' in output


def test_a_cluster_is_made_and_deleted(call):
  code, output, _ = call('create', 'pods', '--tpu=v5e:16x16', '--spot')
  assert code == 0, output
  _, _, (created, deleted) = call('delete', 'pods')
  assert created == [
    *('cluster', 'create', '--cluster=pods', *_WHERE),
    *('--tpu-type=v5litepod-256', '--num-slices=1', '--spot'),
  ]
  assert deleted == ['cluster', 'delete', '--cluster=pods', *_WHERE, '--force']


def test_a_cluster_that_could_not_be_made_is_deleted(call):
  words = ('create', 'pods', '--tpu=v5e:4x4')
  code, output, called = call(*words, **{'cluster create': 1})
  assert code == 1
  assert 'Created and deleted: pods.' in output
  assert [words[:2] for words in called] == [
    ['cluster', 'create'],
    ['cluster', 'delete'],
  ]


def test_a_cluster_of_others_is_left_alone(call):
  words = ('create', 'pods', '--tpu=v5e:4x4')
  code, output, called = call(*words, clusters='pods')
  assert (code, called) == (1, [])
  assert 'pods exists already' in output


def test_stop_status_and_logs(call):
  for action in ('status', 'stop'):
    assert call(action, 'ipo', '--cluster=pods')[0] == 0
  code, output, (status, stop) = call('logs', 'ipo', '--cluster=pods')
  assert (code, 'step 10' in output) == (0, True)
  assert status[:2] == ['workload', 'list']
  assert stop[:3] == ['workload', 'delete', '--workload=ipo']
