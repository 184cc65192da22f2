"""launch/tpu.py and its worker against a gcloud that only pretends.

The fake (testdata/bin/gcloud) records its arguments and answers as gcloud does.
What tpu.py sends to the workers is really run, each with a home of its own.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_FAKES = pathlib.Path(__file__).parents[1] / 'testdata' / 'bin'
_STATES = ['ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
_PLAN = {
  'project': 'p',
  'compute/zone': 'us-west4-a',
  'types': ['v5litepod-8', 'v5litepod-16', 'v5litepod-64', 'v6e-4'],
  'states': _STATES,
  'workers': 1,
}

# Stands for a training run: a checkpoint each attempt. $1 says how the first
# attempts end.
_TRAIN = r"""
dir=$(echo "$2" | sed "s/.*='\(.*\)'/\1/")
step=$((10#${JOB##*/} - 1))
mkdir -p "$dir/checkpoints"
touch "$dir/config.gin"
echo "Resumed from step $step; $TFDS_DATA_DIR; commit $(cat .git/HEAD)"
until_term() { trap 'exit 0' TERM; while true; do sleep .05; done; }
[ $1 = fail ] || mkdir -p "$dir/checkpoints/$((step + 1))"
case $1-$step in
  preempt-0) touch "$FAKE/preempt"; sleep 60 ;;
  often-*) kill -TERM $PPID; until_term ;;
  preempt-1) kill -TERM $PPID; until_term ;;
  wait-0) until_term ;;
  fail-*) echo "ipo_md: ValueError: no"; exit 3 ;;
esac
echo 3 > "$dir/COMPLETED"
"""


class Cloud:
  """A checkout of its own and a fake gcloud."""

  def __init__(self, path: pathlib.Path):
    self.fake, self.repository = path / 'fake', path / 'repository'
    self.model_dir = path / 'run'
    self.fake.mkdir()
    launch = self.repository / 'launch'
    launch.mkdir(parents=True)
    for source in (_ROOT / 'launch').glob('*.py'):
      text = source.read_text().replace('_BEAT = 90 ', '_BEAT = 10 ')
      text = text.replace('_REPORT_PERIOD = 30 ', '_REPORT_PERIOD = 1 ')
      (launch / source.name).write_text(text)
    shutil.copy(_ROOT / 'launch' / 'start.sh', launch)
    (launch / 'setup.sh').write_text('')
    (self.repository / 'train.sh').write_text(_TRAIN)
    self.git('init', '--quiet')
    self.git('add', '.')
    self.git('commit', '--quiet', '--message=all')
    self.plan()

  def git(self, *words: str) -> None:
    identity = ('-c', 'user.name=test', '-c', 'user.email=test@localhost')
    command = ['git', '-C', self.repository, *identity, *words]
    subprocess.run(command, check=True)

  def plan(self, **changes) -> None:
    (self.fake / 'plan.json').write_text(json.dumps({**_PLAN, **changes}))

  def start(self, *words: str) -> subprocess.Popen:
    path = (
      f'{_FAKES}:{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
    )
    return subprocess.Popen(
      [sys.executable, self.repository / 'launch' / 'tpu.py', *words],
      env={**os.environ, 'FAKE': str(self.fake), 'PATH': path},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def call(self, *words: str) -> tuple[int, str]:
    started = self.start(*words)
    output, _ = started.communicate(timeout=60)
    return started.returncode, output

  def words(self, action: str, *flags: str) -> list[str]:
    return [action, 'ipo_md', '--bucket=gs://bucket', '--poll=0.1', *flags]

  def run(self, how: str, *flags: str) -> list[str]:
    binding = f"--gin.MODEL_DIR='{self.model_dir}'"
    return [*self.words('run', *flags), '--', 'bash', 'train.sh', how, binding]

  def calls(self, *words: str) -> list[list[str]]:
    """The recorded calls whose words begin with these."""
    path = self.fake / 'calls.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    called = [json.loads(line) for line in lines]
    return [c for c in called if c[: len(words)] == list(words)]

  def put(self, name: str, text: str) -> None:
    """Into the folder of the first attempt."""
    folder = self.fake / 'gs/bucket/jobs/ipo-md/0001'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f'{text}\n')

  def queued(self, action: str) -> list[list[str]]:
    return self.calls('compute', 'tpus', 'queued-resources', action)

  def slices(self) -> bool:
    return (self.fake / 'slices.json').exists()

  def jobs(self, pattern: str) -> list[pathlib.Path]:
    return sorted((self.fake / 'gs/bucket/jobs/ipo-md').glob(pattern))


@pytest.fixture
def google(tmp_path):
  cloud = Cloud(tmp_path)
  yield cloud
  for pid in (cloud.fake / 'hosts').glob('*/ipo_md/pid'):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(int(pid.read_text()), signal.SIGKILL)


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
    assert 'Resumed from step 2; gs://bucket/data; commit ' in log
  assert 'Resumed from step 1' in output
  assert 'ipo-md is WAITING_FOR_RESOURCES' in output


def test_create_run_stop_resume_delete(google):
  code, output = google.call(*google.words('create', '--tpu=v5litepod-8'))
  assert (code, google.slices()) == (0, True), output
  assert '--node-id=ipo-md' in google.queued('create')[0]

  following = google.start(*google.run('wait'))
  while not google.jobs('0001/*.state'):
    time.sleep(0.05)
  while not (google.model_dir / 'checkpoints/1').exists():
    time.sleep(0.05)
  _, output = google.call(*google.words('status'))
  assert re.search(r'ipo-md: ACTIVE\n.*0001:\n +t1v-0-w-0: running', output)
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
  _, output = google.call(*google.words('logs'))
  assert 'jobs/ipo-md/0002/t1v-0-w-0.log' in output
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
  assert 'ipo-md goes on' in output

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
  assert 't1v-0-w-0 failed with exit code 3' in output
  assert 'ipo_md: ValueError: no' in output
  assert google.slices() == created
  assert len(google.jobs('*')) == 1


@pytest.mark.parametrize(
  ('flags', 'changes', 'message'),
  [
    (['--tpu=v5e:4x5'], {}, 'v5e has no slice 4x5; nearest: v5e:4x4,'),
    (['--tpu=v5x:4x4'], {}, 'no TPU v5x; nearest: v5p, v5e'),
    (['--tpu=v5e'], {}, 'is no TPU slice. Write GENERATION:SHAPE'),
    (['--tpu=v5litepod-12'], {}, 'v5litepod-12 is not offered in this zone'),
    (['--tpu=v4:2x2x2'], {}, 'v4-16 is not offered in this zone'),
    (['--tpu=v5e:4x4', '--slices=0'], {}, '--slices=0 must be at least 1'),
    (['--tpu=v5e:4x4', '--poll=-1'], {}, '--poll=-1 must be more than 0'),
    (['--tpu=v5e:4x4'], {'project': '(unset)'}, 'No project: give --project='),
    (
      ['--tpu=v5e:4x4'],
      {'hiccups': [['config get', [1], 'ERROR: (unset)']]},
      'No project: give --project=',
    ),
    (['--tpu=v5e:4x4'], {'compute/zone': ''}, 'No zone: give --zone='),
    (['--tpu=v5e:4x4'], {'forbidden': True}, 'cannot be written. Nothing was'),
    (['--tpu=v5e:4x4', '--bucket=b'], {}, '--bucket=b: write gs://NAME'),
    ([], {}, 'There are no slices ipo-md: give --tpu='),
  ],
)
def test_bad_input_is_refused_before_anything_is_created(
  google, flags, changes, message
):
  google.plan(**changes)
  code, output = google.call(*google.run('wait', *flags))
  assert code == 1
  assert message in output, output
  assert not google.queued('create')
  assert not (google.fake / 'gs').exists()


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


def test_uncommitted_files_are_named(google):
  (google.repository / 'launch' / 'mine.gin').write_text('')
  code, output = google.call(*google.run('wait', '--tpu=v5e:4x4'))
  assert code == 1
  assert 'commit them first:\n?? launch/mine.gin' in output
  assert not google.queued('create')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'states': ['ACCEPTED', 'FAILED']}, 'Created and deleted: ipo-md.'),
    (
      {'quota': True},
      'TPUV5sLitepodPerProject exceeded.\nNothing was created.',
    ),
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


@pytest.mark.parametrize(
  'action', ['create', 'run', 'status', 'logs', 'stop', 'delete']
)
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


_503 = 'ERROR: HTTPError 503: Service Unavailable.'


def test_a_hiccup_of_google_ends_no_run(google):
  hiccups = [
    ['queued-resources list', [2], ''],
    ['queued-resources list', [4], '[]'],
    ['queued-resources list', [6], _503],
    ['0001/start.sh', [1], _503],
    ['0001/*.state', [1], '\n'],
    ['0001/*.state', [2], 't1v-0-w-0'],
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
  assert 'If ipo-md is there, it costs money until `python launch' in output


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


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--tpu=v5e:4x4'], 'with tpu v5litepod-8, not v5litepod-16'),
    (['--slices=2'], 'with slices 1, not 2'),
    (['--reserved'], 'with reserved False, not True'),
  ],
)
def test_flags_that_contradict_the_slices_are_refused(google, flags, message):
  google.call(*google.words('create', '--tpu=v5e:2x4'))
  written = len(google.calls('storage', 'cp'))
  code, output = google.call(*google.run('wait', *flags))
  assert code == 1
  assert message in output, output
  assert len(google.calls('storage', 'cp')) == written


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


def test_a_mesh_that_the_chips_do_not_make_is_refused(google):
  for tpu, shape, fits in (
    ('v5e:4x4', '(3,1,1)', False),
    ('v5e:4x4', '(3,-1,1)', False),
    ('v5e:4x4', '(-1,-1,1)', False),
    ('v5e:4x4', '(16,1)', False),
    ('v5e:4x4', '(1,-1,1)', True),
    ('v4:2x2x2', '(2,2,1,2)', True),
  ):
    google.plan(types=['v5litepod-16', 'v4-16'])
    words = google.words('run', f'--tpu={tpu}', '--dry_run')
    code, output = google.call(
      *words, '--', 'python', f'--gin.MESH_SHAPE={shape}'
    )
    assert code == (0 if fits else 1), output
    assert ('does not make the 16 chips of 1 x v5litepod-16' in output) != fits


def test_a_bucket_that_cannot_be_listed_is_named(google):
  google.plan(hiccups=[['storage ls', [1], 'ERROR: 403 storage.objects.list']])
  code, output = google.call(*google.run('wait', '--tpu=v5e:2x4'))
  assert code == 1
  assert '--bucket=gs://bucket cannot be listed. Nothing was created' in output
  assert not google.queued('create')


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

  google.plan(hiccups=[['queued-resources ssh', [2], _503]])
  code, output = google.call(*google.words('stop'))
  assert (code, '0001 was not stopped' in output) == (1, True), output
  assert google.jobs('0001/stop.state')[0].read_text() == 'stop failed\n'
