#!/bin/sh
# Submit a pruning run as a job to a Ray cluster and follow its output:
#
#     RAY_API_SERVER_ADDRESS=http://HEAD:8265 scripts/ray_job.sh mnist-cnn --sparsity 0.98 --workers 12
#
# The arguments are passed to `gaprune prune`. Ray's job server needs `pip install "ray[default]"` on both
# sides. Ray uploads the current folder, so name factory files and weights relative to it, and keep it
# small. The run directory is OUT, on the head node. If the job ended early (`ray job stop` leaves a
# checkpoint), the same command resumes it. If the cluster requires a token, set RAY_AUTH_MODE=token and
# RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN.
set -eu

: "${RAY_API_SERVER_ADDRESS:=http://127.0.0.1:8265}"
: "${OUT:=/tmp/gaprune-run}" # on the head node, in a folder that survives the job
export RAY_API_SERVER_ADDRESS

if [ "$#" -eq 0 ]; then
    echo "usage: [OUT=FOLDER] $0 TARGET [option of gaprune prune ...]" >&2
    exit 2
fi

# shellcheck disable=SC2016 # $0 and $@ are those of the shell on the head node
exec ray job submit --working-dir . -- sh -c '
    out=$0
    if [ -d "$out/checkpoint" ]; then
        exec gaprune resume "$out" --ray-address auto
    fi
    exec gaprune prune "$@" --ray-address auto --out "$out"
' "$OUT" "$@"
