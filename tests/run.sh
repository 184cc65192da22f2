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
# Tests that run programs of models are skipped where there is no sandbox.
if ! command -v bwrap > /dev/null && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  echo "Installing bubblewrap ..."
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends bubblewrap; } \
    > /dev/null 2>&1 || echo "It could not be installed." >&2
fi
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
  echo "Running the tests (16 minutes on two cores, half an hour the first time) ..."
fi
# A third process uses the time in which tests wait, if there is memory for it.
processes=2
free=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo 2>/dev/null || true)
[ "${free:-0}" -lt 18 ] || processes=3
python -m pytest --numprocesses "$processes" --dist worksteal "$@"
