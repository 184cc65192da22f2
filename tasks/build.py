"""Makes the TFDS data sets of the tasks, with a progress bar and no Beam.

  python -m tasks.build tldr_comparisons ultrafeedback --data_dir=DIR

Original files are downloaded. Without a network put them into a directory and
name it with --manual_dir. --checksums=FILE, in the format of `sha256sum`,
stops at a file that differs from it; the sums of what is read are logged.
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
  """Makes one data set, if it is not there. TFDS keeps only whole ones.

  Args:
    name: of the data set.
    data_dir: where it goes; None: TFDS_DATA_DIR.
    manual_dir: where original files lie that were fetched by hand.
    checksums: file of `sha256sum`.
    max_bad_rows: rows of a split that may be left out.
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
      f'{name} is in {builder.data_dir} already: original files and checksums '
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


def main(argv: Sequence[str] | None = None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('names', nargs='+', choices=sorted(_BUILDERS))
  parser.add_argument('--data_dir')
  parser.add_argument('--manual_dir')
  parser.add_argument('--checksums')
  parser.add_argument('--max_bad_rows', type=int, default=0)
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
