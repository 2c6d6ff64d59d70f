# shellcheck shell=bash
# Settings of the TPU slice, sourced by the scripts in this folder. Change the values here, or set the variables before a
# script. They may be set:
#   tpu      the name of the slice and of its queued resource
#   zone, type, version  where it is, its size, and its runtime version
#   options  more options of `gcloud compute tpus queued-resources create`; --spot: a slice that may be preempted
#   share    an NFS export that all workers mount, for example a Filestore: it has stores/ and runs/, and it is what
#            remains of a preempted slice
#   python   Python 3.11 or newer on the workers
# The project is copied to each worker; each worker has its own .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

: "${tpu:=revelio}" "${zone:=us-east5-b}" "${type:=v6e-16}" "${version:=v2-alpha-tpuv6e}"
: "${options:=--spot}" "${share:=10.0.0.2:/revelio}" "${python:=python3.11}"
