#!/usr/bin/env bash
# Train on all workers of a TPU slice. Create the slice if it does not exist; if it is preempted, create it again and
# continue from the newest checkpoint. Run this on any machine with gcloud; arguments are passed to the command:
#   bash launch/tpu_vm/train.sh --config flux_t5 --config.data.lanes=4
# config.data.lanes must be a multiple of the workers: a v6e-16 has 4. The workers get the newest commit of this clone.
# The slice is deleted when the run is finished. It is kept if the command fails, so that you can look at it.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
: "${poll:=30}"  # seconds between questions about the slice

queued() { gcloud compute tpus queued-resources "$1" "$tpu" --zone "$zone" "${@:2}"; }

# The state of the slice: nothing if there is none, READY if it can be used, PREEMPTED, or that of its queued resource.
state() {
    local queue slice
    queue=$(queued describe --format 'value(state.state)' 2>/dev/null) || return 0
    slice=$(gcloud compute tpus tpu-vm describe "$tpu" --zone "$zone" --format 'value(state)' 2>/dev/null) || slice=
    if [ "$queue" = ACTIVE ]; then echo "${slice:-PREEMPTED}"; else echo "$queue"; fi
}

on_all_workers() {
    gcloud compute tpus tpu-vm "$1" --zone "$zone" --worker=all "${@:2}"
}

train() {
    local command
    git archive --output "$archive" HEAD
    on_all_workers scp "$archive" "$tpu:revelio.tar" || return
    # The settings of this machine, and the arguments, as words that the workers' shells read back.
    printf -v command '%q ' env share="$share" python="$python" bash launch/tpu_vm/worker.sh \
        revelio train "$@" --config.mesh.distributed=yes --config.train.resume=yes
    on_all_workers ssh "$tpu" --command \
        "mkdir -p revelio && tar -xf revelio.tar -C revelio && cd revelio && $command"
}

archive=$(mktemp --suffix=.tar)
trap 'rm -f "$archive"' EXIT
read -ra options <<< "$options"
while true; do
    case $(state) in
        "")
            echo "create $tpu, a $type in $zone"
            queued create --node-id "$tpu" --accelerator-type "$type" --runtime-version "$version" "${options[@]}"
            ;;
        READY)
            if train "$@"; then break; fi
            sleep "$poll"  # a preempted slice is READY for some seconds more
            if [ "$(state)" = READY ]; then
                echo "error: the command failed; the slice $tpu is kept" >&2
                exit 1
            fi
            ;;
        PREEMPTED | SUSPENDED | TERMINATED)
            echo "$tpu is preempted; delete what is left of it"
            queued delete --force --quiet
            ;;
        FAILED)
            echo "error: the request for $tpu failed; see gcloud compute tpus queued-resources describe $tpu" >&2
            exit 1
            ;;
        *) sleep "$poll" ;;  # WAITING_FOR_RESOURCES, PROVISIONING and others
    esac
done
queued delete --force --quiet
