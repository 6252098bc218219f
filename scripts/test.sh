#!/usr/bin/env bash
# Run all tests in .venv, which is made where it is missing.
#
#   scripts/test.sh [--slow] [OPTION OF pytest ...]
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export OMP_NUM_THREADS=1
cd "$root"
exec python -m pytest -q "$@" tests
