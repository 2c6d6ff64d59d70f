#!/usr/bin/env bash
#SBATCH --job-name=revelio-extract
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
# Extract activations in an array of jobs. Submit it from the project's folder; arguments are passed to the command:
#   sbatch --array=0-3 --gpus-per-node=1 launch/slurm/extract.sh --config flux_t5
# Each task of the array is a worker, and the last one to finish writes the manifest of the store. A task that is killed,
# or stopped before its time limit, is queued again and continues at its first missing shard.
source launch/slurm/environment.sh || exit 2
need_gpus torch
run srun revelio extract "$@"
