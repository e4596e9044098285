#!/bin/sh
# Create .venv in the project root (once) and install what constraints.txt pins into it.
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
    if [ "$wanted" = python3 ]; then # nobody asked for a certain one
        candidates='python3 python3.13 python3.12 python3.11'
    fi
    for python in $candidates; do
        if new_enough "$python"; then
            return
        fi
    done
    came=$("$wanted" --version 2>&1) || came="no $wanted"
    fail "gaprune needs Python 3.11 or newer; found $came." \
        "Install one, or name it: make PYTHON=/path/to/python3.11"
}

if ! new_enough .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    find_python
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail \
        "$python cannot make virtual environments: its venv or ensurepip module is missing." \
        "On Debian and Ubuntu: apt install python3-venv"
    "$python" -m venv --clear .venv
fi

version=$(.venv/bin/python -c 'import platform; print(platform.python_version())')
echo "Installing gaprune and what it needs into .venv with Python $version. This takes minutes: PyTorch" \
    "and Ray fill 2 GB, several more where pip picks a PyTorch for GPUs." >&2
if ! .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
    -c constraints.txt -e '.[dev]' >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    fail "The installation failed; all of what pip said is in $log."
fi
