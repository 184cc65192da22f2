"""A checkout, a gcloud that only pretends, and a small sweep, for launch/.

tests/testdata/bin/gcloud records its arguments and answers as gcloud does. What
tpu.py sends to the workers really runs, on each in a home folder of its own.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.launch import checkout

_STATES = ['ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
_PLAN = {
  'project': 'p',
  'compute/zone': 'us-west4-a',
  'types': ['v5litepod-8', 'v5litepod-16'],
  'states': _STATES,
  'workers': 1,
}

# Stands in for a training run and saves a checkpoint in each attempt. $1 says
# how the first attempts end.
_TRAIN = r"""
dir=$(echo "$2" | sed "s/.*='\(.*\)'/\1/; s|gs:/|$FAKE/gs|")
step=$((10#${JOB##*/} - 1))
mkdir -p "$dir/checkpoints"
touch "$dir/config.gin"
echo "Host $HOSTNAME"
echo "Resumed from step $step; $TFDS_DATA_DIR; commit $(cat COMMIT)"
until_term() { trap 'exit 0' TERM; while true; do sleep .05; done; }
[ $1 = fail ] || mkdir -p "$dir/checkpoints/$((step + 1))"
case $1-$step in
  lose-0) echo 1 > "$FAKE/lost"; sleep 60 ;;
  preempt-0) touch "$FAKE/preempt"; sleep 60 ;;
  often-*) kill -TERM $PPID; until_term ;;
  preempt-1) kill -TERM $PPID; until_term ;;
  wait-0) until_term ;;
  fail-*) echo "ipo_md: ValueError: no"; exit 3 ;;
esac
echo 3 > "$dir/COMPLETED"
"""

_SWEEP = """
at_once = 2
launcher = ["{python}", "{fake}"]
[runs.supervised]
run = "supervised.gin"
[policies]
run = "online.gin"
seeds = [0, 1]
bindings = {{INITIAL_CHECKPOINT_PATH = "'$supervised'"}}
[algorithms.rl]
axes = {{TAU = [0.1, 0.2]}}
against = "supervised"
[algorithms.ipo]
axes = {{TAU = [0.3, 0.05]}}
[select]
run = "side_by_side.gin"
judge = "truth"
against = "rl"
seeds = [0]
bindings = {{HELD_OUT_SPLIT = "'validation'"}}
[compare]
run = "side_by_side.gin"
policies = ["supervised"]
bindings = {{HELD_OUT_SPLIT = "'test'"}}
"""


class Cloud:
  """A checkout of its own and a fake gcloud.

  Attributes:
    fake: Folder of the fake gcloud.
    repository: The checkout.
    commit: Hash of its commit.
    model_dir: MODEL_DIR of the runs.
  """

  def __init__(self, path: pathlib.Path):
    self.fake, self.repository = path / 'fake', path / 'repository'
    self.model_dir = self.fake / 'gs/bucket/run'
    self.fake.mkdir()
    replaced = {
      '_BEAT = 90 ': '_BEAT = 10 ',
      '_REPORT_PERIOD = 30 ': '_REPORT_PERIOD = 1 ',
      'epath.Path(sys.argv[1])': (
        f"epath.Path(sys.argv[1].replace('gs:/', '{self.fake}/gs'))"
      ),
    }
    checkout.make(self.repository, replaced)
    (self.repository / 'launch' / 'setup.sh').write_text('')
    (self.repository / 'train.sh').write_text(_TRAIN)
    self.commit = checkout.commit(self.repository)
    self.plan()

  def plan(self, **changes) -> None:
    """Sets what the fake gcloud answers, as changes to the default plan."""
    (self.fake / 'plan.json').write_text(json.dumps({**_PLAN, **changes}))

  def start(self, *words: str) -> subprocess.Popen:
    """Starts launch/tpu.py."""
    folders = (checkout.FAKES, pathlib.Path(sys.executable).parent)
    path = ':'.join([*map(str, folders), os.environ['PATH']])
    return subprocess.Popen(
      [sys.executable, self.repository / 'launch' / 'tpu.py', *words],
      env={**os.environ, 'FAKE': str(self.fake), 'PATH': path},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def call(self, *words: str) -> tuple[int, str]:
    """Runs launch/tpu.py; returns its exit code and output."""
    started = self.start(*words)
    output, _ = started.communicate(timeout=60)
    return started.returncode, output

  def words(self, action: str, *flags: str) -> list[str]:
    """Returns the arguments of an action on the slices ipo_md."""
    return [action, 'ipo_md', '--bucket=gs://bucket', '--poll=0.1', *flags]

  def run(self, how: str, *flags: str) -> list[str]:
    """Returns the arguments of a run whose attempts end as `how` says."""
    binding = "--gin.MODEL_DIR='gs://bucket/run'"
    return [*self.words('run', *flags), '--', 'bash', 'train.sh', how, binding]

  def calls(self, *words: str) -> list[list[str]]:
    """Returns the calls of gcloud that begin with these words."""
    path = self.fake / 'calls.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    called = [json.loads(line) for line in lines]
    return [c for c in called if c[: len(words)] == list(words)]

  def put(self, name: str, text: str) -> None:
    """Writes a file into the folder of the first attempt."""
    folder = self.fake / 'gs/bucket/jobs/ipo-md/0001'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f'{text}\n')

  def queued(self, action: str) -> list[list[str]]:
    """Returns the calls of `gcloud compute tpus queued-resources`."""
    return self.calls('compute', 'tpus', 'queued-resources', action)

  def slices(self) -> bool:
    """Returns whether the slices exist."""
    return (self.fake / 'slices.json').exists()

  def jobs(self, pattern: str) -> list[pathlib.Path]:
    """Returns files of the attempts."""
    return sorted((self.fake / 'gs/bucket/jobs/ipo-md').glob(pattern))


@pytest.fixture
def google(tmp_path):
  """Yields a `Cloud`; ends what still runs on its workers."""
  cloud = Cloud(tmp_path)
  yield cloud
  for pid in (cloud.fake / 'hosts').glob('*/ipo_md/pid'):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture(name='spec')
def spec_fixture(tmp_path):
  """Returns the path of a spec whose runs are fake."""
  fake = pathlib.Path(__file__).with_name('fake_run.py')
  path = tmp_path / 'spec.toml'
  path.write_text(_SWEEP.format(python=sys.executable, fake=fake))
  return path
