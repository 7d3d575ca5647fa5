#!/usr/bin/env bash
# Start this on each machine, with the same values, and with the same folder for checkpoints/:
#   HEAD=10.0.0.1 MACHINES=4 RUN_ID=flowers1 docs/launch/several_machines.sh --lr=1e-3
# HEAD is one of the machines: the others find each other there. Its port 29500 has to be open.
# RUN_ID is new for each training: torchrun's restarts find their run by it.
# With MACHINES=2:4 the run starts with two machines, takes in two more, and does without them again.
set -euo pipefail

exec torchrun \
    --nnodes="$MACHINES" \
    --nproc-per-node=gpu \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$HEAD:29500" \
    --rdzv-id="$RUN_ID" \
    --max-restarts=3 \
    --shutdown-timeout=100 \
    main.py train "$@"
