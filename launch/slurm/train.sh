#!/usr/bin/env bash
#SBATCH --job-name=revelio-train
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# Train on one or several nodes. Submit it from the project's folder; arguments are passed to the command:
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm/train.sh --config flux_t5 --config.data.lanes=16
# JAX takes one process per GPU from SLURM. config.data.lanes must be a multiple of the processes. A run that is
# preempted, or stopped before its time limit, saves its step, is queued again and continues bit for bit.
source launch/slurm/environment.sh || exit 2
need_gpus JAX
# --wait: a process that ends early leaves the others time to save; --kill-on-bad-exit would kill them at once.
run srun --kill-on-bad-exit=0 --wait=120 \
    revelio train "$@" --config.mesh.distributed=yes --config.train.resume=yes
