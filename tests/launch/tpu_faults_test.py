"""Faults of Google, and of a user who interrupts launch/tpu.py."""

import json
import re
import signal
import time

import pytest

pytestmark = pytest.mark.slow

_503 = 'ERROR: HTTPError 503: Service Unavailable.'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'states': ['ACCEPTED', 'FAILED']}, 'Created and deleted: ipo-md.'),
    (
      {'quota': True},
      'TPUV5sLitepodPerProject exceeded.\nNothing was created.',
    ),
    ({'types': []}, 'is not available here.\nNothing was created.'),
  ],
)
@pytest.mark.parametrize('action', ['create', 'run'])
def test_a_queue_without_capacity_leaves_nothing(
  google, action, changes, message
):
  google.plan(**changes)
  words = google.run('wait', '--tpu=v5e:4x4')
  if action == 'create':
    words = google.words('create', '--tpu=v5e:4x4')
  code, output = google.call(*words)
  assert code == 1
  assert message in output, output
  assert not google.slices()


def test_a_hiccup_of_google_ends_no_run(google):
  hiccups = [
    ['queued-resources list', [2], ''],
    ['queued-resources list', [4], '[]'],
    ['queued-resources list', [6], _503],
    ['0001/start.sh', [1], _503],
    ['0001/*.state', [1], '\n'],
    ['0001/*.state', [2], 't1v-n-f0c9b1-w-0'],
    ['queued-resources delete', [1, 3], _503],
    ['queued-resources create', [2], _503],
  ]
  google.plan(hiccups=hiccups)
  code, output = google.call(*google.run('preempt', '--tpu=v5e:2x4'))
  assert code == 0, output
  assert not google.slices()
  assert len(google.queued('delete')) == 4
  assert len(google.queued('create')) == 3


def test_slices_that_cannot_be_deleted_are_named(google):
  google.plan(hiccups=[['queued-resources delete', list(range(99)), _503]])
  code, output = google.call(*google.run('fail', '--tpu=v5e:2x4'))
  assert (code, google.slices()) == (1, True)
  assert 'ipo_md: ValueError: no' in output
  assert re.search(
    'ipo-md could not be deleted and still costs money: '
    '`python launch/tpu.py delete ipo-md --project=p --zone=us-west4-a`',
    output,
  )


def test_an_answer_that_nobody_expects_names_the_slices(google):
  google.plan(hiccups=[['queued-resources list', [2], '[1]']])
  code, output = google.call(*google.run('wait', '--tpu=v5e:2x4'))
  assert (code, google.slices()) == (1, True)
  assert 'If ipo-md exists, it costs money until `python launch' in output


@pytest.mark.parametrize('action', ['create', 'delete'])
def test_slices_that_may_be_left_by_ctrl_c_are_named(google, action):
  google.plan(hiccups=[[f'queued-resources {action}', [1], 'slow']])
  started = google.start(*google.run('fail', '--tpu=v5e:2x4'))
  while not google.queued(action):
    time.sleep(0.05)
  time.sleep(0.2)
  started.send_signal(signal.SIGINT)
  output, _ = started.communicate(timeout=30)
  assert started.returncode == 130
  assert re.search('ipo-md may (be in the queue|still be there)', output)
  assert '`python launch/tpu.py delete ipo-md ' in output
  assert (action == 'delete') == ('ipo_md: ValueError: no' in output)


def test_slices_of_others_are_not_deleted(google):
  google.call(*google.words('create', '--tpu=v5e:2x4'))
  hiccups = [
    ['queued-resources list', [len(google.queued('list')) + 1], '[]'],
    ['queued-resources create', [2], 'ERROR: ALREADY_EXISTS: ipo-md'],
  ]
  google.plan(hiccups=hiccups)
  code, output = google.call(*google.run('wait', '--tpu=v5e:2x4'))
  assert (code, google.slices()) == (1, True)
  assert 'ALREADY_EXISTS' in output
  assert not google.queued('delete')


def test_slices_that_are_being_deleted_are_waited_for(google):
  google.call(*google.words('create', '--tpu=v5e:2x4'))
  resource, _ = json.loads((google.fake / 'slices.json').read_text())
  states = json.dumps([resource, ['DELETING', 'ACTIVE']])
  (google.fake / 'slices.json').write_text(states)
  code, output = google.call(*google.run('other'))
  assert code == 0, output
  assert 'ipo-md is being deleted' in output


def test_slices_made_in_another_way_are_kept_when_preempted(google):
  google.call(*google.words('create', '--tpu=v5e:2x4'))
  text = (google.fake / 'slices.json').read_text()
  text = text.replace('acceleratorType', 'acceleratorConfig')
  (google.fake / 'slices.json').write_text(text)
  (google.fake / 'preempt').touch()
  code, output = google.call(*google.run('wait'))
  assert code == 1
  assert 'cannot be queued again as it was: it has no acceleratorT' in output
  assert not google.queued('delete')


@pytest.mark.parametrize('slices', [1, 2])
def test_a_slice_that_is_lost_before_the_start_is_queued_again(google, slices):
  """Its queued resource stays active, and gcloud's ssh succeeds without it."""
  flags = ('--tpu=v5e:4x4', '--spot', f'--slices={slices}')
  google.call(*google.words('create', *flags))
  (google.fake / 'lost').write_text(str(slices - 1))
  code, output = google.call(*google.run('other'))
  assert code == 0, output
  assert (google.model_dir / 'COMPLETED').exists()
  assert 'ipo-md is PREEMPTED' in output
  assert len(google.queued('create')) == 2
  assert len(google.jobs('*/*.log')) == slices


def test_a_slice_that_is_lost_while_it_starts_leaves_no_run_alone(google):
  node = {
    'name': 'projects/p/locations/z/nodes/ipo-md-0',
    'queuedResource': 'projects/p/locations/z/queuedResources/ipo-md',
    'state': 'READY',
    'networkEndpoints': [{}, {}],
  }
  nodes = json.dumps([node, node])
  google.plan(hiccups=[['tpu-vm list', [1, 2], nodes]], workers=2)
  (google.fake / 'lost').write_text('1')
  words = google.run('other', '--tpu=v5e:4x4', '--spot', '--slices=2')
  code, output = google.call(*words)
  assert code == 0, output
  assert 'gcloud reached 2 of 4 workers' in output
  assert len(google.queued('create')) == 2
  # The workers that had started are not those of the next attempt.
  assert len(google.jobs('0002/*.state')) == 4


def test_a_slice_that_is_lost_in_a_run_is_a_preemption(google):
  words = google.run('lose', '--tpu=v5e:4x4', '--spot', '--slices=2')
  code, output = google.call(*words)
  assert code == 0, output
  assert '0001: preempted.' in output
  assert len(google.queued('create')) == 2
