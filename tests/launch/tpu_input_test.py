"""Arguments that launch/tpu.py refuses before it creates anything."""

import pytest


@pytest.mark.parametrize(
  ('flags', 'changes', 'message'),
  [
    (['--tpu=v5e:4x5'], {}, "v5e has no slice '4x5'. Nearest: 'v5e:4x4'"),
    (['--tpu=v5x:4x4'], {}, 'v4, v5e, v5p, v6e, tpu7x. Write'),
    (['--tpu=v5e'], {}, 'is not a TPU slice. Write GENERATION:SHAPE'),
    (['--tpu=tpu7x:2x2x1'], {}, 'tpu7x-8 cannot be queued in Cloud TPU: use'),
    (['--tpu=v5p:4x4x16'], {}, 'v5p-4x4x16 cannot be queued in Cloud TPU'),
    (['--tpu=v5e:4x4', '--slices=0'], {}, '--slices=0 must be at least 1'),
    (['--tpu=v5e:4x4', '--poll=-1'], {}, '--poll=-1 must be more than 0'),
    (
      ['--tpu=v5e:4x4'],
      {'project': '(unset)'},
      'No project is set: give --project=',
    ),
    (
      ['--tpu=v5e:4x4'],
      {'hiccups': [['config get', [1], 'ERROR: (unset)']]},
      'No project is set: give --project=',
    ),
    (['--tpu=v5e:4x4'], {'compute/zone': ''}, 'No zone is set: give --zone='),
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


def test_uncommitted_files_are_named(google):
  (google.repository / 'launch' / 'mine.gin').write_text('')
  code, output = google.call(*google.run('wait', '--tpu=v5e:4x4'))
  assert code == 1
  assert 'commit them first:\n?? launch/mine.gin' in output
  assert not google.queued('create')


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


def test_a_mesh_that_the_chips_do_not_make_is_refused(google):
  for tpu, shape, right in (
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
    assert code == (0 if right else 1), output
    refused = 'does not match the 16 devices of 1 x v5litepod-16' in output
    assert refused != right


def test_a_bucket_that_cannot_be_listed_is_named(google):
  google.plan(hiccups=[['storage ls', [1], 'ERROR: 403 storage.objects.list']])
  code, output = google.call(*google.run('wait', '--tpu=v5e:2x4'))
  assert code == 1
  assert '--bucket=gs://bucket cannot be listed. Nothing was created' in output
  assert not google.queued('create')


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ("--gin.MODEL_DIR='/tmp/x'", 'MODEL_DIR = /tmp/x is on a disk that is'),
    ('--gin.MODEL_DIR=/tmp/x', 'MODEL_DIR = /tmp/x is on a disk that is'),
    ('--gin.MODEL_DIR=gs://BUCKET/x', 'gs://BUCKET is no bucket: write the'),
  ],
)
@pytest.mark.parametrize('dry', [['--dry_run'], []])
def test_what_would_be_lost_with_the_machines_is_refused(
  google, word, message, dry
):
  words = google.words('run', '--tpu=v5e:4x4', *dry)
  code, output = google.call(*words, '--', 'python', word)
  assert code == 1
  assert message in output, output
  assert not google.queued('create')
  assert not (google.fake / 'gs').exists()
