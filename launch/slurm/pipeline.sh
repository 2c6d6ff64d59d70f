#!/usr/bin/env bash
# Submit all steps as a chain of jobs: each starts when the jobs that it needs have succeeded. Arguments are passed to
# every command. Rerun safely: finished steps are skipped.
#   bash launch/slurm/pipeline.sh --config flux_t5 --config.data.lanes=8
#   concept="style=glossy 3d" strength=-1.5,0 bash launch/slurm/pipeline.sh --config mini_sd
# With $concept, two more jobs learn the concept and steer it at the strengths $strength.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
mkdir -p "$logs"

# submit NAME NEEDED RESOURCES SCRIPT ARGUMENT...   NEEDED: the number of the job to wait for, or nothing
submit() {
    local name=$1 needed=$2 resources options=()
    read -ra resources <<< "$3"
    if [ -n "$needed" ]; then options=(--dependency="afterok:$needed" --kill-on-invalid-dep=yes); fi
    job=$(sbatch --parsable --job-name="revelio-$name" --output="$logs/%x-%j.out" \
        "${options[@]}" "${resources[@]}" "launch/slurm/$4.sh" "${@:5}")
    job=${job%%;*}  # on a federation, the name of the cluster follows
    printf '%-9s job %s%s\n' "$name" "$job" "${needed:+, after $needed}"
}

submit extract "" "$extract_resources" extract "$@"
submit train "$job" "$train_resources" train "$@"
trained=$job
submit evaluate "$trained" "$command_resources" command evaluate "$@"
submit export "$trained" "$command_resources" command export "$@"
if [ -n "${concept:-}" ]; then
    submit learn "$job" "$command_resources" command learn "$@" --concept "$concept"
    submit steer "$job" "$command_resources" command steer "$@" --concept "${concept#*=}" --strength "${strength:--1.5,0}"
fi
echo "output: $logs/; progress: squeue --me; cancel everything: scancel --me"
