#!/bin/sh
# Submit a pruning run as a job to a Ray cluster and follow what it says:
#
#     RAY_API_SERVER_ADDRESS=http://HEAD:8265 scripts/ray_job.sh mnist-cnn --sparsity 0.98 --workers 12
#
# What follows is given to `gaprune prune`. Ray's job server needs `pip install "ray[default]"` on both
# sides. The current folder travels along, so factory files and weights are named relative to it; keep
# it small. The run folder lies on the head node, at OUT. If the job ended early (`ray job stop` keeps a
# checkpoint), the same line goes on with it. Where the cluster asks for a token, set RAY_AUTH_MODE=token
# and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN.
set -eu

: "${RAY_API_SERVER_ADDRESS:=http://127.0.0.1:8265}"
: "${OUT:=/tmp/gaprune-run}" # on the head node; a folder that outlives the job
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
