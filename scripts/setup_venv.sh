#!/bin/sh
# Create .venv in the project root and install gaprune with the versions pinned in constraints.txt.
# Usage: scripts/setup_venv.sh [PYTHON]; make calls it when .venv is missing or out of date.
set -eu
cd "$(dirname "$0")/.."

wanted=${1:-python3}
log=.venv/setup.log

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    candidates=$wanted
    if [ "$wanted" = python3 ]; then # the default: try newer names too
        candidates='python3 python3.13 python3.12 python3.11'
    fi
    for python in $candidates; do
        if new_enough "$python"; then
            return
        fi
    done
    version_seen=$("$wanted" --version 2>&1) || version_seen="no $wanted"
    fail "gaprune needs Python 3.11 or newer; found $version_seen." \
        "Install it, or name another interpreter: make PYTHON=/path/to/python3.11"
}

if ! new_enough .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    find_python
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail \
        "$python cannot make virtual environments: its venv or ensurepip module is missing." \
        "On Debian and Ubuntu: apt install python3-venv"
    "$python" -m venv --clear .venv
fi

version=$(.venv/bin/python -c 'import platform; print(platform.python_version())')
echo "Installing gaprune and its dependencies into .venv with Python $version. This takes a few minutes" \
    "and 2 GB of disk, several GB more if pip picks a CUDA build of PyTorch." >&2
if ! .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
    -c constraints.txt -e '.[dev]' >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    fail "The installation failed; $log holds the whole output of pip."
fi
