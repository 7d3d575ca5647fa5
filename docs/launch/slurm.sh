#!/usr/bin/env bash
# sbatch docs/launch/slurm.sh --train-data-root=my_photos --max-epoch=200
# Two minutes before the time is up, Slurm sends SIGUSR1: the run saves its state and ends, the job
# goes back into the queue, and later --resume goes on.
#SBATCH --job-name=train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

requeue() {
    kill -USR1 "$launch" # srun hands it to torchrun on each node, and that to the ranks
    wait "$launch"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it from the job itself
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc-per-node=gpu \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$head:29500" \
    --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    --max-restarts=3 \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --shutdown-timeout=100 \
    main.py train --resume --checkpoint-root="checkpoints/$SLURM_JOB_ID" "$@" &
launch=$!
wait "$launch"
