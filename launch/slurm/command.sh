#!/usr/bin/env bash
#SBATCH --job-name=revelio
#SBATCH --requeue
#SBATCH --open-mode=append
# Run any other command in one process. Submit it from the project's folder:
#   sbatch --gpus-per-node=1 launch/slurm/command.sh evaluate --config flux_t5
source launch/slurm/environment.sh || exit 2
run revelio "$@"
