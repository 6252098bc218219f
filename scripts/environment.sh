# Sourced by the other scripts: makes .venv where it is missing and puts its programs first in PATH.
#
# PYTHON=PROGRAM              Python 3.11 or 3.12 (default: the first one found)
# TORCH_REQUIREMENT=SPEC      which torch to install (default: torch==2.13.0)
# Both count where .venv is made.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." > /dev/null && pwd)

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        [[ $candidate != "${PYTHON:-}" ]] || echo "${0##*/}: $PYTHON is no Python 3.11 or 3.12: looking for another" >&2
    done
    die "Python 3.11 or 3.12 is needed (PYTHON=/path/to/python); for 3.8 to 3.10 see docs/compatibility.md"
}

# The environment counts as finished once it names the setup.py that it was made from.
make_environment() {
    local made_from="$root/.venv/made-from-setup.py" python
    if ! cmp --silent "$root/setup.py" "$made_from"; then
        python=$(find_python) || exit 1
        echo "installing into .venv with $("$python" --version)"
        [[ -x $root/.venv/bin/python ]] || "$python" -m venv "$root/.venv"
        "$root/.venv/bin/python" -m pip install --quiet "${TORCH_REQUIREMENT:-torch==2.13.0}" numpy
        "$root/.venv/bin/python" -m pip install --quiet --editable "$root[test]"
        cp "$root/setup.py" "$made_from"
    fi
    # Waiting threads that spin make training several times slower where another program runs too.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
    export PATH="$root/.venv/bin:$PATH" PYTHON="$root/.venv/bin/python" PYTHONWARNINGS=ignore
}

make_environment
