#!/bin/sh
# Build the sdist and, from it, the wheel; then use the wheel in a fresh environment outside the project.
# Usage: scripts/check_package.sh (make package calls it). The files stay in dist/.
set -eu
cd "$(dirname "$0")/.."

project=$PWD
away=$(mktemp -d) # outside the project, so that nothing is imported from the checkout
trap 'rm -rf "$away"' EXIT

rm -rf dist build
.venv/bin/python -m build --outdir dist . >"$away/build.log" 2>&1 </dev/null || {
    tail -n 20 "$away/build.log" >&2
    exit 1
}

# Both archives must contain every file of the package that git tracks.
.venv/bin/python - <<'EOF'
import glob, subprocess, sys, tarfile, zipfile

tracked = set(subprocess.run(["git", "ls-files", "gaprune"], capture_output=True, text=True, check=True).stdout.split())
(wheel,), (sdist,) = glob.glob("dist/*.whl"), glob.glob("dist/*.tar.gz")
contents = {
    wheel: set(zipfile.ZipFile(wheel).namelist()),
    sdist: {name.partition("/")[2] for name in tarfile.open(sdist).getnames()},
}
for file, names in contents.items():
    missing = sorted(tracked - names)
    if missing:
        sys.exit(f"{file} lacks {len(missing)} tracked files: {', '.join(missing[:5])}")
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
    echo "gaprune was imported from $at instead of the wheel" >&2
    exit 1
    ;;
esac
venv/bin/python -m pip check >"$away/check.log" || { cat "$away/check.log" >&2; exit 1; }
venv/bin/gaprune doctor
venv/bin/gaprune prune mnist-mlp --sparsity 0.95 --generations 1 --steps 20 --quiet --out run >run.log
test -s run/report.html
venv/bin/gaprune export run --format sparse >export.log
refused=0 # Ray is an extra: several workers need it, and the message says so
venv/bin/gaprune prune mnist-mlp --sparsity 0.95 --workers 2 --no-save 2>ray.log || refused=$?
test "$refused" = 2 && grep -q 'gaprune\[ray\]' ray.log
echo "built, installed and tried in a fresh environment: $(cd "$project" && ls dist | tr '\n' ' ')"
