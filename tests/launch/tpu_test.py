"""Runs of launch/tpu.py against the fake gcloud of conftest.py."""

import re
import signal
import time

import pytest

pytestmark = pytest.mark.slow


def test_a_preempted_run_is_queued_again_and_goes_on(google):
  google.plan(workers=2)
  flags = ('--tpu=v5e:4x4', '--spot', '--slices=2')
  code, output = google.call(*google.run('preempt', *flags))
  assert code == 0, output
  assert (google.model_dir / 'COMPLETED').exists()
  assert not google.slices()

  # Attempt 1 was preempted, 2 saved on SIGTERM and exited 0, 3 is done.
  first, second = google.queued('create')
  assert len(google.queued('delete')) == 2
  assert set(first) <= set(second)
  assert {
    '--accelerator-type=v5litepod-16',
    '--runtime-version=v2-alpha-tpuv5-lite',
    '--node-count=2',
    '--node-prefix=ipo-md',
    '--spot',
    '--project=p',
    '--zone=us-west4-a',
  } <= set(first)
  assert [path.name for path in google.jobs('*')] == ['0001', '0002', '0003']
  states = [
    path.read_text().split()[1:] for path in google.jobs('0002/*.state')
  ]
  assert states == [['exited', '42']] * 4
  logs = [path.read_text() for path in google.jobs('0003/*.log')]
  assert len(logs) == 4
  for log in logs:
    assert f'step 2; gs://bucket/data; commit {google.commit}\n' in log
  assert 'Resumed from step 1' in output
  assert 'ipo-md is WAITING_FOR_RESOURCES' in output
  # Process 0 is in slice 0, whose host's name sorts last.
  assert 'Host t1v-n-f0c9b1-w-0' in output
  assert 'Host t1v-n-0c9b1' not in output


def test_create_run_stop_resume_delete(google):
  code, output = google.call(*google.words('create', '--tpu=v5litepod-8'))
  assert (code, google.slices()) == (0, True), output
  assert '--node-id=ipo-md' in google.queued('create')[0]

  following = google.start(*google.run('wait'))
  while not google.jobs('0001/*.state'):
    time.sleep(0.05)
  while not (google.model_dir / 'checkpoints/1').exists():
    time.sleep(0.05)
  (state,) = google.jobs('0001/*.state')
  assert state.read_text().startswith('t1v-n-f0c9b1-w-0 running')
  code, output = google.call(*google.run('other'))
  assert code == 1
  assert 'runs another command' in output
  code, output = google.call(*google.words('stop'))
  assert code == 0, output
  output, _ = following.communicate(timeout=30)
  assert (following.returncode, google.slices()) == (1, True), output
  assert not (google.model_dir / 'COMPLETED').exists()

  code, output = google.call(*google.run('wait'))
  assert (code, google.slices()) == (0, True), output
  assert (google.model_dir / 'COMPLETED').exists()
  (log,) = google.jobs('0002/*.log')
  assert log.name == 't1v-n-f0c9b1-w-0.log'
  assert 'Resumed from step 1' in output

  code, _ = google.call('delete', 'ipo_md')
  assert (code, google.slices()) == (0, False)
  assert len(google.queued('create')) == len(google.queued('delete')) == 1


def test_the_same_command_follows_what_is_running(google):
  google.call(*google.words('create', '--tpu=v5e:2x4'))
  left = google.start(*google.run('wait'))
  while not google.jobs('0001/*.state'):
    time.sleep(0.05)
  time.sleep(0.5)
  left.send_signal(signal.SIGINT)
  output, _ = left.communicate(timeout=30)
  assert left.returncode == 130
  assert 'ipo-md keeps running' in output

  looked = len(google.queued('list'))
  again = google.start(*google.run('wait'))
  while len(google.queued('list')) < looked + 6:  # it follows the job
    time.sleep(0.05)
  google.call(*google.words('stop'))
  again.communicate(timeout=30)
  assert [path.name for path in google.jobs('*')] == ['0001']


def test_a_run_that_ends_at_once_is_not_started_for_ever(google):
  code, output = google.call(*google.run('often', '--tpu=v5e:2x4'))
  assert code == 1
  assert 'Three attempts in a row were too short' in output
  assert len(google.jobs('*')) == 3
  assert not google.slices()


@pytest.mark.parametrize('created', [True, False])
def test_a_run_that_fails_says_why_and_deletes_what_it_queued(google, created):
  if created:
    google.call(*google.words('create', '--tpu=v5e:2x4'))
  code, output = google.call(*google.run('fail', '--tpu=v5e:2x4'))
  assert code == 1
  assert 't1v-n-f0c9b1-w-0 failed with exit code 3' in output
  assert 'ipo_md: ValueError: no' in output
  assert google.slices() == created
  assert len(google.jobs('*')) == 1


@pytest.mark.parametrize('peer', ['running 2', 'exited 3'])
def test_states_of_dead_workers_block_nothing(google, peer):
  google.call(*google.words('create', '--tpu=v5e:2x4'))
  google.put('start.sh', 'COMMAND=(another)')
  google.put('w-0.state', 'w-0 running 9')
  google.put('w-1.state', f'w-1 {peer}')
  code, output = google.call(*google.run('other'))
  assert code == 0, output
  assert google.jobs('0002/*.state')


def test_a_stopped_run_is_not_started_again(google):
  google.put('stop.state', 'stop requested')
  google.put('ghost.state', 'ghost running 3')
  code, output = google.call(*google.run('often', '--tpu=v5e:2x4'))
  assert code == 1
  assert '0001: stopped.' in output
  assert len(google.jobs('*')) == 1


def test_stop_ends_where_nothing_runs(google):
  google.put('start.sh', '')
  google.put('w-0.state', 'w-0 running 9')
  code, output = google.call(*google.words('stop'))
  assert (code, 'its slices are gone' in output) == (0, True), output

  google.call(*google.words('create', '--tpu=v5e:2x4'))
  google.put('w-0.state', 'w-0 exited 42')
  code, output = google.call(*google.words('stop'))
  assert (code, '0001: stopped' in output) == (0, True), output

  google.plan(hiccups=[['queued-resources ssh', [2], 'ERROR: HTTPError 503']])
  code, output = google.call(*google.words('stop'))
  assert (code, '0001 was not stopped' in output) == (1, True), output
  assert google.jobs('0001/stop.state')[0].read_text() == 'stop failed\n'


def test_names_of_a_sweep_become_names_of_google(google):
  name = 'ipo_md_TAU=0.1_MIXTURE_COEFS=(0.125, 0.125)_SEED='
  found = set()
  for seed in '12':
    _, output = google.call(
      *('run', name + seed, '--tpu=v5e:4x4', '--bucket=gs://bucket'),
      *('--dry_run', '--', 'python'),
    )
    found.add(re.search(r'--node-id=(\S+)', output)[1])
  assert len(found) == 2
  for short in found:
    assert re.fullmatch(r'ipo-md-tau-0-1-mixture-[a-z0-9-]*[a-z0-9]', short)
    assert len(short) <= 40
  code, output = google.call('delete', '1st')
  assert (code, 'must begin with a letter' in output) == (1, True)


@pytest.mark.parametrize('action', ['create', 'run', 'stop', 'delete'])
def test_a_dry_run_prints_the_commands_and_runs_none(google, action):
  words = google.words(action, '--dry_run')
  if action == 'delete':
    words.remove('--bucket=gs://bucket')
  if action in ('create', 'run'):
    words += ['--tpu=v4:4x4x4', '--reserved']
  if action == 'run':
    words += ['--', 'python', '-m', 'ipo_md', "--gin.MODEL_DIR='gs://b/r'"]
  code, output = google.call(*words)
  assert code == 0, output
  assert 'gcloud ' in output
  if action == 'run':
    assert '--accelerator-type=v4-128' in output
    assert '--reserved' in output
    assert 'COMMAND=(python -m ipo_md ' in output
    assert output.index(' create ') < output.index(' ssh ')
    assert output.index(' ssh ') < output.index(' delete ')
  assert len(google.calls()) == len(google.calls('config', 'get')) == 2
