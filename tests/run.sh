#!/usr/bin/env bash
# Runs the tests, after installing what they need: bash tests/run.sh [PYTEST ARGS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS=test,tpu,docs source launch/setup.sh
export JAX_PLATFORMS=cpu
echo "Checking format and lint with ruff ..."
ruff format --check --quiet .
ruff check --quiet .
echo "Running the tests (about twelve minutes on two cores) ..."
python -m pytest --numprocesses 2 "$@"
