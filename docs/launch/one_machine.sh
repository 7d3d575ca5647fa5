#!/usr/bin/env bash
# All GPUs of this machine; without a GPU, give the number of processes: one_machine.sh 4 --lr=1e-3
# A rank that dies is started again, three times at most, and the run goes on from its last save.
set -euo pipefail

ranks=gpu
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    ranks=$1
    shift
fi
exec torchrun --nproc-per-node="$ranks" --max-restarts=3 --shutdown-timeout=100 main.py train "$@"
