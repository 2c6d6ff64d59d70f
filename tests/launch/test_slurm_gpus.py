"""Jobs of launch/slurm that have GPUs which JAX or torch does not use. No SLURM is involved: srun is a stand-in."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers import ROOT


def run(folder: pathlib.Path, script: str, **variables: str) -> subprocess.CompletedProcess:
    """Run the script of a job. ``started`` appears in ``folder`` if it gets as far as srun."""
    for name, text in {"srun": f"touch {folder}/started", "revelio": "exit 1"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    environment |= {"PATH": path, "SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "-1", **variables}
    command = ["bash", f"launch/slurm/{script}.sh", "--config", "flux_t5"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "package"), [("train", "JAX"), ("extract", "torch")])
def test_a_job_stops_if_it_has_gpus_that_are_not_used(tmp_path, script, package):
    done = run(tmp_path, script, SLURM_GPUS_ON_NODE="8")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: the job has 8 GPUs on this node, but {package} uses the CPU; install {package}")
    assert (done.returncode, (tmp_path / "started").exists()) == (2, False)


@pytest.mark.parametrize("variables", [{}, {"SLURM_GPUS_ON_NODE": "8", "JAX_PLATFORMS": "cpu"}])
def test_a_job_without_gpus_or_for_the_cpu_starts(tmp_path, variables):
    done = run(tmp_path, "train", **variables)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "started").exists()
