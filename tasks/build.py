"""Builds the TFDS data sets of the tasks, with a progress bar and no Beam.

  python -m tasks.build tldr_comparisons ultrafeedback --data_dir=DIR

The original files are downloaded. If there is no network, put them into a
directory and name it with --manual_dir. With --checksums=FILE, in the format of
`sha256sum`, the build stops at a file that differs. The checksums of all files
are logged.
"""

import argparse
from collections.abc import Sequence
import os
import sys

from absl import logging
import tensorflow_datasets as tfds

from tasks.builders import tldr as tldr_builder
from tasks.builders import ultrafeedback as ultrafeedback_builder

_BUILDERS = {
  builder.name: builder
  for builder in (
    tldr_builder.TldrSummaries,
    tldr_builder.TldrComparisons,
    ultrafeedback_builder.Ultrafeedback,
  )
}


def build(
  name: str,
  *,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  checksums: str | None = None,
  max_bad_rows: int = 0,
) -> tfds.core.DatasetBuilder:
  """Builds one data set unless it exists. TFDS saves only complete ones.

  Args:
    name: Name of the data set.
    data_dir: Directory of the result. None uses TFDS_DATA_DIR.
    manual_dir: Directory of the original files. None downloads them.
    checksums: Path of a file in the format of `sha256sum`.
    max_bad_rows: Number of bad rows of a split that may be left out.

  Raises:
    ValueError: A directory or file is absent, a checksum differs, or there are
      too many bad rows.
  """
  if manual_dir is not None and not os.path.isdir(manual_dir):
    raise ValueError(f'--manual_dir={manual_dir} is not a directory.')
  builder = _BUILDERS[name](
    data_dir=data_dir,
    file_format='array_record',
    manual_dir=manual_dir,
    max_bad_rows=max_bad_rows,
    checksums=_read_checksums(checksums) if checksums else None,
  )
  if builder.info.splits:
    print(
      f'{name} exists in {builder.data_dir}. The original files and checksums '
      'are not read.'
    )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
  )
  return builder


def _read_checksums(path: str) -> dict[str, str]:
  sums = {}
  with open(path) as file:
    for number, line in enumerate(file, 1):
      parts = line.split()
      if len(parts) != 2 or len(parts[0]) != 64:
        raise ValueError(f'{path}, row {number}: not a line of `sha256sum`.')
      sums[os.path.basename(parts[1].lstrip('*'))] = parts[0].lower()
  return sums


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('names', nargs='+', choices=sorted(_BUILDERS))
  parser.add_argument('--data_dir', help='directory of the data sets')
  parser.add_argument('--manual_dir', help='directory of the original files')
  parser.add_argument('--checksums', help='file in the format of sha256sum')
  parser.add_argument(
    '--max_bad_rows',
    type=int,
    default=0,
    help='bad rows of a split that may be left out',
  )
  args = vars(parser.parse_args(argv))
  logging.set_verbosity(logging.INFO)
  for name in args.pop('names'):
    try:
      builder = build(name, **args)
    except (ValueError, OSError) as error:
      sys.exit(f'tasks.build: {name}: {error}')
    for split, info in builder.info.splits.items():
      print(f'{name} {split}: {info.num_examples:,} rows, {builder.data_dir}')


if __name__ == '__main__':
  main()
