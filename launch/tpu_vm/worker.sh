#!/usr/bin/env bash
# Run a command on one worker of the slice; train.sh runs this on all of them. Arguments: the command.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if ! command -v "$python" >/dev/null || ! [ -x /sbin/mount.nfs ]; then
    sudo apt-get update -qq
    sudo apt-get install -y -qq nfs-common "$python-venv"
fi
mountpoint -q /mnt/revelio || { sudo mkdir -p /mnt/revelio && sudo mount "$share" /mnt/revelio; }
for folder in stores runs; do
    sudo mkdir -p "/mnt/revelio/$folder"
    sudo chmod a+rwx "/mnt/revelio/$folder"
    ln -sfn "/mnt/revelio/$folder" "$folder"
done
export extras=train-tpu
source launch/environment.sh
exec "$@"
