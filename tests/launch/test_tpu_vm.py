"""launch/tpu_vm against a stand-in for gcloud, which keeps the state of one slice in files. No TPU is involved."""

import os
import pathlib
import shlex
import subprocess

import pytest

from tests.helpers import ROOT

GCLOUD = """#!/usr/bin/env bash
cd "$(dirname "$0")"
case "$*" in
    *"queued-resources describe"*) cat queue 2>/dev/null; exit ;;
    *"tpu-vm describe"*) cat slice 2>/dev/null || echo READY; exit ;;
    *"queued-resources create"*) if [ -e refused ]; then echo FAILED > queue; else echo ACTIVE > queue; fi ;;
    *"queued-resources delete"*) rm -f queue slice ;;
    *ssh*)
        printf '%s' "${@: -1}" > command
        outcome=$(head -n 1 outcomes)
        sed -i 1d outcomes
        if [ "$outcome" = preempted ]; then echo PREEMPTED > slice; fi
        [ "$outcome" = finished ]
        ;;
esac
status=$?
echo "$4" >> calls
exit "$status"
"""


@pytest.fixture
def slice_folder(tmp_path) -> pathlib.Path:
    """The folder of the stand-in: ``outcomes`` has a line for each ssh, ``calls`` what was done."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    return tmp_path


def train(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "poll": "0"}
    command = ["bash", "launch/tpu_vm/train.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_a_preempted_slice_is_created_again_and_deleted_at_the_end(slice_folder):
    (slice_folder / "outcomes").write_text("preempted\nfinished\n")
    done = train(slice_folder, "--config", "flux_t5")
    assert done.returncode == 0, done.stderr
    assert (slice_folder / "calls").read_text().split() == ["create", "scp", "ssh", "delete"] * 2


def test_a_failed_command_keeps_the_slice(slice_folder):
    (slice_folder / "outcomes").write_text("failed\n")
    done = train(slice_folder, "--config", "flux_t5")
    assert (done.returncode, done.stderr) == (1, "error: the command failed; the slice revelio is kept\n")
    assert (slice_folder / "calls").read_text().split() == ["create", "scp", "ssh"]


def test_a_refused_request_is_not_repeated(slice_folder):
    (slice_folder / "refused").touch()
    done = train(slice_folder, "--config", "flux_t5")
    assert done.returncode == 1
    assert "error: the request for revelio failed" in done.stderr


def test_the_workers_get_every_argument_as_it_was_given(slice_folder):
    (slice_folder / "outcomes").write_text("finished\n")
    arguments = ("--config", "my config.py", "--config.run=runs/$x 'y'")
    assert train(slice_folder, *arguments).returncode == 0
    words = shlex.split((slice_folder / "command").read_text())
    start = words.index("train") + 1
    assert tuple(words[start : start + 3]) == arguments
    assert words[start + 3 :] == ["--config.mesh.distributed=yes", "--config.train.resume=yes"]
