# shellcheck shell=bash
# Settings of the SLURM cluster, sourced by the scripts in this folder on the login node and in every job. Change the
# values here, or set the variables before a script. They may be set:
#   extract_resources  options of sbatch for extraction; the array's tasks are the workers of the store
#   train_resources    options of sbatch for training, with one task per GPU
#   command_resources  options of sbatch for commands that use one GPU, for example evaluate and steer
#   restarts           how often a job that is killed or stopped may go back into the queue
#   logs               the folder of the jobs' output
#   extras, constraints, python, venv  the environment that launch/environment.sh creates if no `revelio` is on PATH
# Run it once on the login node to install the project without submitting a job: bash launch/slurm/environment.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

: "${extract_resources:=--array=0-3 --cpus-per-task=8 --gpus-per-node=1 --time=4:00:00}"
: "${train_resources:=--nodes=1 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --exclusive --time=12:00:00}"
: "${command_resources:=--cpus-per-task=8 --gpus-per-node=1 --time=2:00:00}"
: "${restarts:=10}" "${logs:=logs}"
# JAX for NVIDIA GPUs needs Python 3.12 or newer.
: "${extras:=extract,train-cuda13,steer}" "${constraints:=constraints-newest.txt}" "${python:=${PYTHON:-python3.12}}"

# Some clusters need lines such as: module load python/3.12
if ! command -v revelio >/dev/null && [ -n "${SLURM_JOB_ID:-}" ]; then
    # A job installs nothing: the tasks of an array would do it at the same time.
    PATH="$PWD/${venv:-.venv}/bin:$PATH"
    command -v revelio >/dev/null ||
        { echo "error: no revelio on PATH; run bash launch/slurm/environment.sh on the login node first" >&2; exit 2; }
elif ! command -v revelio >/dev/null; then
    source launch/environment.sh
fi

# need_gpus JAX|torch   Stop a job whose GPUs the package does not use: it would hold them and compute on CPUs.
# A package that cannot be imported is left to the command, which names the extra.
need_gpus() {
    local question backend
    case $1 in
        JAX) question='import jax; print(jax.default_backend())' ;;
        torch) question='import torch; print("gpu" if torch.cuda.is_available() else "cpu")' ;;
    esac
    if [ "${SLURM_GPUS_ON_NODE:-0}" = 0 ] || [ "${JAX_PLATFORMS:-}" = cpu ]; then return; fi
    backend=$(XLA_PYTHON_CLIENT_PREALLOCATE=false python -c "$question" 2>/dev/null) || return 0
    if [ "$backend" = cpu ]; then
        echo "error: the job has $SLURM_GPUS_ON_NODE GPUs on this node, but $1 uses the CPU; install $1 for GPUs" \
            "(extras and python in launch/slurm/environment.sh), or set JAX_PLATFORMS=cpu to use the CPU" >&2
        exit 2
    fi
}

# Run the command of a job. If a signal ended it, put the job back into the queue: the memory ran out, the node is
# needed for another job, or the time limit is near. An error (status 1) or wrong input (status 2) would only repeat.
run() {
    local status=0 count=${SLURM_RESTART_COUNT:-0} job=$SLURM_JOB_ID
    # One task of an array has the same SLURM_JOB_ID as the whole array.
    if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
    "$@" || status=$?
    if [ "$status" -gt 128 ] && [ "$count" -lt "$restarts" ]; then
        echo "ended by signal $((status - 128)); back into the queue, restart $((count + 1)) of at most $restarts"
        scontrol requeue "$job"
    fi
    exit "$status"
}
