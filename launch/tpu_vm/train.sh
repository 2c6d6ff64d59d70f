#!/usr/bin/env bash
# Train on all workers of a TPU slice. Create the slice if it does not exist; if it is preempted, create it again and
# continue from the newest checkpoint. Run this on any machine with gcloud; arguments are passed to the command:
#   bash launch/tpu_vm/train.sh --config flux_t5 --config.data.lanes=4
# config.data.lanes must be a multiple of the workers: a v6e-16 has 4. The arguments are checked before a slice is
# created, if the project is installed here. The workers get the files of this folder as they are at the start, without
# those that git ignores.
# The slice is deleted when the run is finished, and after wrong input (status 2). After any other failure it is kept,
# and billed, so that you can look at it; the last line is then the command that deletes it.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
: "${poll:=30}"  # seconds between questions about the slice

command=(train "$@" --config.mesh.distributed=yes --config.train.resume=yes)

# Stop with status 2 on wrong arguments. Parsing needs neither JAX nor the store.
check() {
    local local_python
    for local_python in "${venv:-.venv}/bin/python" python3; do
        if "$local_python" -c 'import revelio_jax.cli' 2>/dev/null; then
            "$local_python" - "${command[@]}" <<'PYTHON'
import sys

from revelio_jax import cli, errors

with errors.report_errors(), cli.program_name("revelio train"):
    cli.parse(sys.argv[1:], "")
PYTHON
            return
        fi
    done
    echo "the arguments are not checked: the project is not installed on this machine"
}

queued() { gcloud compute tpus queued-resources "$1" "$tpu" --zone "$zone" "${@:2}"; }

# The state of the slice: nothing if there is none, READY if it can be used, PREEMPTED, or that of its queued resource.
state() {
    local queue slice
    queue=$(queued describe --format 'value(state.state)' 2>/dev/null) || return 0
    slice=$(gcloud compute tpus tpu-vm describe "$tpu" --zone "$zone" --format 'value(state)' 2>/dev/null) || slice=
    if [ "$queue" = ACTIVE ]; then echo "${slice:-PREEMPTED}"; else echo "$queue"; fi
}

delete() {
    queued delete --force --quiet
    exists=
}

on_all_workers() {
    gcloud compute tpus tpu-vm "$1" --zone "$zone" --worker=all "${@:2}"
}

# Return the status of the first worker that failed.
train() {
    local words
    on_all_workers scp "$archive" "$tpu:revelio.tar" || return
    # The settings of this machine, and the arguments, as words that the workers' shells read back.
    printf -v words '%q ' env share="$share" python="$python" bash launch/tpu_vm/worker.sh revelio "${command[@]}"
    on_all_workers ssh "$tpu" --command "mkdir -p revelio && tar -xf revelio.tar -C revelio && cd revelio && $words"
}

leave() {
    rm -f "$archive"
    if [ -n "$exists" ]; then
        echo "$tpu is kept; a slice is billed until you delete it:" \
            "gcloud compute tpus queued-resources delete $tpu --zone $zone --force" >&2
    fi
}

check
if [[ " $* " == *" --help "* ]]; then exit; fi
archive=$(mktemp --suffix=.tar) exists=
trap leave EXIT
# --ignore-failed-read: git also lists files that are deleted here.
git ls-files -z --cached --others --exclude-standard --deduplicate |
    tar --create --file "$archive" --null --files-from=- --ignore-failed-read
echo "the workers get the files of this folder, without those that git ignores: $(du -h "$archive" | cut -f 1)"
read -ra options <<< "$options"
while true; do
    now=$(state)
    exists=$now
    case $now in
        "")
            echo "create $tpu, a $type in $zone"
            exists=yes
            queued create --node-id "$tpu" --accelerator-type "$type" --runtime-version "$version" "${options[@]}" ||
                { exists=$(state); exit 1; }
            ;;
        READY)
            status=0
            train || status=$?
            if [ "$status" = 0 ]; then break; fi
            sleep "$poll"  # a preempted slice is READY for some seconds more
            if [ "$(state)" != READY ]; then continue; fi
            if [ "$status" = 2 ]; then
                echo "error: wrong input (status 2); delete $tpu" >&2
                delete
                exit 2
            fi
            echo "error: the command failed with status $status" >&2
            exit 1
            ;;
        PREEMPTED | SUSPENDED | TERMINATED)
            echo "$tpu is preempted; delete what is left of it"
            delete
            ;;
        FAILED)
            echo "error: the request for $tpu failed; see" \
                "gcloud compute tpus queued-resources describe $tpu --zone $zone" >&2
            exit 1
            ;;
        *) sleep "$poll" ;;  # WAITING_FOR_RESOURCES, PROVISIONING and others
    esac
done
delete
