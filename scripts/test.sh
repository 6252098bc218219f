#!/usr/bin/env bash
# Run all tests in .venv, which is made where it is missing, a process a core (at most eight).
#
#   scripts/test.sh [--slow] [OPTION OF pytest, or FILE ...]        -n 0: one after the other
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export OMP_NUM_THREADS=1
cd "$root"
what=(tests)
for argument in "$@"; do
    [[ ! -e ${argument%%::*} ]] || what=()
done
exec python -m pytest -q -n auto --maxprocesses 8 --dist worksteal "$@" ${what[@]+"${what[@]}"}
