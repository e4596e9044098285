#!/bin/sh
# Build the source distribution, from it the wheel, and use the wheel where nothing else of the project is.
# Usage: scripts/check_package.sh; make package calls it. What was built stays in dist/.
set -eu
cd "$(dirname "$0")/.."

project=$PWD
away=$(mktemp -d) # outside of the project: nothing is imported from its folder by accident
trap 'rm -rf "$away"' EXIT

rm -rf dist build
.venv/bin/python -m build --outdir dist . >"$away/build.log" 2>&1 </dev/null || {
    tail -n 20 "$away/build.log" >&2
    exit 1
}

# the sdist must hold every file of the package that git knows, and the wheel was made from it
.venv/bin/python - <<'EOF'
import glob, subprocess, sys, tarfile, zipfile

tracked = set(subprocess.run(["git", "ls-files", "gaprune"], capture_output=True, text=True, check=True).stdout.split())
(wheel,), (sdist,) = glob.glob("dist/*.whl"), glob.glob("dist/*.tar.gz")
inside = {
    wheel: set(zipfile.ZipFile(wheel).namelist()),
    sdist: {name.partition("/")[2] for name in tarfile.open(sdist).getnames()},
}
for file, names in inside.items():
    missing = sorted(tracked - names)
    if missing:
        sys.exit(f"{file} lacks {len(missing)} files of the project: {', '.join(missing[:5])}")
EOF

python3=$(.venv/bin/python -c 'import sys; print(sys._base_executable)')
"$python3" -m venv "$away/venv"
"$away/venv/bin/python" -m pip install --disable-pip-version-check --no-input --no-compile --progress-bar off -q \
    -c constraints.txt dist/*.whl </dev/null >"$away/pip.log" 2>&1 || {
    tail -n 20 "$away/pip.log" >&2
    exit 1
}

cd "$away"
unset PYTHONPATH
at=$(venv/bin/python -c 'import gaprune; print(gaprune.__file__)')
case $at in
"$away"/*) ;;
*)
    echo "gaprune was imported from $at and not from the wheel" >&2
    exit 1
    ;;
esac
venv/bin/python -m pip check >"$away/check.log" || { cat "$away/check.log" >&2; exit 1; }
venv/bin/gaprune doctor --no-ray
venv/bin/gaprune prune mnist-mlp --sparsity 0.95 --generations 1 --steps 20 --quiet --out run >run.log
test -s run/report.html
venv/bin/gaprune export run --format dense >export.log
echo "built and used in an environment of its own: $(cd "$project" && ls dist | tr '\n' ' ')"
