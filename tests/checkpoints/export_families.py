"""Writes every family through a MODEL_DIR, with a config.json that is made.

  python -m tests.checkpoints.export_families DIR

No file of the original is carried over. testdata/make_families.py reads DIR.
"""

import pathlib
import sys
import tempfile

from tests.checkpoints import families
from tests.checkpoints import families_test
from tests.checkpoints import networks


def main():
  for family in families.CONFIGS:
    model = families_test.network(family)
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      path = families.write(family, folder / 'original')
      networks.convert(model, path, folder / 'run', 'orbax')
      networks.convert(model, folder / 'run', f'{sys.argv[1]}/{family}', 'hf')


if __name__ == '__main__':
  main()
