#!/usr/bin/env bash
# Runs the tests, after installing what they need.
#
#   bash tests/run.sh                       all of them, and the types
#   bash tests/run.sh fast                  without those that compile for long
#   bash tests/run.sh tests/core -k gin     other arguments are pytest's
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS=test,tpu,docs source launch/setup.sh
export JAX_PLATFORMS=cpu
echo "Checking format and lint with ruff ..."
ruff format --check --quiet .
ruff check --quiet .
if [ "${1:-}" = fast ]; then
  shift
  echo "Running the fast tests (about three minutes on two cores) ..."
  set -- -m 'not slow and not proof' "$@"
else
  if [ $# -eq 0 ]; then
    echo "Checking types with pyright (about one minute) ..."
    pyright
  fi
  echo "Running the tests (15 minutes on two cores, half an hour the first time) ..."
fi
# Three, since many tests wait for processes that they start.
python -m pytest --numprocesses 3 --dist worksteal "$@"
