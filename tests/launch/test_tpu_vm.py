"""launch/tpu_vm against a stand-in for gcloud, which keeps the state of one slice in files. No TPU is involved."""

import os
import pathlib
import shlex
import subprocess
import sys
import tarfile

import pytest

from tests.helpers import ROOT

GCLOUD = """#!/usr/bin/env bash
cd "$(dirname "$0")"
case "$*" in
    *"queued-resources describe"*) cat queue 2>/dev/null; exit ;;
    *"tpu-vm describe"*) cat slice 2>/dev/null || echo READY; exit ;;
    *"queued-resources create"*) if [ -e refused ]; then echo FAILED > queue; else echo ACTIVE > queue; fi ;;
    *"queued-resources delete"*) rm -f queue slice ;;
    *" scp "*) cp "$8" copied ;;
    *ssh*)
        printf '%s' "${@: -1}" > command
        outcome=$(head -n 1 outcomes)
        sed -i 1d outcomes
        if [ "$outcome" = preempted ]; then echo PREEMPTED > slice; fi
        case $outcome in finished) ;; 2) (exit 2) ;; *) false ;; esac
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


def train(
    folder: pathlib.Path, *arguments: str, cwd: pathlib.Path = ROOT, **variables: str
) -> subprocess.CompletedProcess:
    # python3, which checks the arguments, is the Python of the tests.
    path = f"{folder}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "poll": "0", **variables}
    command = ["bash", "launch/tpu_vm/train.sh", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def test_a_preempted_slice_is_created_again_and_deleted_at_the_end(slice_folder):
    (slice_folder / "outcomes").write_text("preempted\nfinished\n")
    done = train(slice_folder, "--config", "flux_t5")
    assert done.returncode == 0, done.stderr
    assert (slice_folder / "calls").read_text().split() == ["create", "scp", "ssh", "delete"] * 2


def test_a_failed_command_keeps_the_slice_and_prints_the_command_that_deletes_it(slice_folder):
    (slice_folder / "outcomes").write_text("failed\n")
    done = train(slice_folder, "--config", "flux_t5")
    assert done.returncode == 1
    error, kept = done.stderr.splitlines()[-2:]
    assert error == "error: the command failed with status 1"
    assert (slice_folder / "calls").read_text().split() == ["create", "scp", "ssh"]
    what, _, command = kept.partition(": ")
    assert what == "revelio is kept; a slice is billed until you delete it"
    subprocess.run([slice_folder / "gcloud", *shlex.split(command)[1:]], check=True)
    assert not (slice_folder / "queue").exists()


def test_wrong_input_on_the_workers_deletes_the_slice(slice_folder):
    (slice_folder / "outcomes").write_text("2\n")
    done = train(slice_folder, "--config", "flux_t5")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: wrong input (status 2); delete revelio"
    assert (slice_folder / "calls").read_text().split() == ["create", "scp", "ssh", "delete"]


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["--config", "flux_t6"], 2, "unknown config; did you mean flux_t5?"),
        (["--config", "flux_t5", "--config.sae.k=0"], 2, "config.sae.k is 0; it must be at least 1"),
        ([], 2, "--config is missing"),
        (["--help"], 0, "usage: revelio train"),
    ],
)
def test_wrong_arguments_create_no_slice(slice_folder, arguments, status, line):
    done = train(slice_folder, *arguments)
    assert (done.returncode, (slice_folder / "calls").exists()) == (status, False)
    assert line in done.stdout + done.stderr


def test_without_the_project_on_this_machine_the_arguments_are_not_checked(slice_folder):
    (slice_folder / "outcomes").write_text("finished\n")
    (slice_folder / "python3").write_text("#!/bin/sh\nexit 1\n")
    (slice_folder / "python3").chmod(0o755)
    done = train(slice_folder, "--config", "flux_t6", venv="missing")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the arguments are not checked: the project is not installed on this machine\n")


def test_the_workers_get_changed_and_new_files_but_none_that_git_ignores(slice_folder, tmp_path):
    project = tmp_path / "project"
    for name in ("launch/tpu_vm/train.sh", "launch/tpu_vm/environment.sh", "deleted", "changed"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text((ROOT / name).read_text() if "." in name else "committed")
    (project / ".gitignore").write_text("/runs/\n")
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    (project / "deleted").unlink()
    (project / "changed").write_text("changed here")
    (project / "runs").mkdir()
    for name in ("new", "runs/ignored"):
        (project / name).write_text("not committed")
    (slice_folder / "outcomes").write_text("finished\n")
    done = train(slice_folder, "--config", "flux_t5", cwd=project, venv="missing")
    assert done.returncode == 0, done.stderr
    with tarfile.open(slice_folder / "copied") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    assert {"launch/tpu_vm/train.sh", ".gitignore"} < set(files)
    assert set(files) - {"launch/tpu_vm/train.sh", "launch/tpu_vm/environment.sh", ".gitignore"} == {"changed", "new"}
    assert (files["changed"], files["new"]) == (b"changed here", b"not committed")


def test_a_refused_request_is_not_repeated(slice_folder):
    (slice_folder / "refused").touch()
    done = train(slice_folder, "--config", "flux_t5")
    assert done.returncode == 1
    assert "error: the request for revelio failed" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("queued-resources delete revelio --zone us-east5-b --force")


def test_the_workers_get_every_argument_as_it_was_given(slice_folder):
    (slice_folder / "outcomes").write_text("finished\n")
    config = slice_folder / "my config.py"
    config.write_text((ROOT / "configs" / "mini_sd.py").read_text())
    arguments = ("--config", str(config), "--config.run=runs/$x 'y'")
    assert train(slice_folder, *arguments).returncode == 0
    words = shlex.split((slice_folder / "command").read_text())
    start = words.index("train") + 1
    assert tuple(words[start : start + 3]) == arguments
    assert words[start + 3 :] == ["--config.mesh.distributed=yes", "--config.train.resume=yes"]
