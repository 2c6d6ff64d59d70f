"""launch/slurm on a real SLURM: the chain of jobs ends with the store and the parameters of a local run."""

import csv
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from revelio_jax import cli
from revelio_jax.sae import sharding
from revelio_jax.training import checkpoints
from tests.helpers import MINIATURES, ROOT, slurm

STEPS, PROMPTS = 300, 1200


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The environment of a user: the project's commands on PATH, one device per process."""
    path = f"{pathlib.Path(sys.executable).parent}:{slurm.PATH}"
    threads = {"OMP_NUM_THREADS": "1"}  # the rounding of torch depends on it
    return {**os.environ, "XLA_FLAGS": devices(1), "PYTHONPATH": str(ROOT), "PATH": path, **threads}


def devices(count: int) -> str:
    return os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={count}")


@pytest.fixture(scope="module")
def cluster(environment):
    if reason := slurm.missing():
        pytest.skip(f"launch/slurm did not run on SLURM: {reason}")
    with slurm.running(environment) as cluster:
        yield cluster


@pytest.fixture
def overrides(tmp_path):
    """A function that returns the arguments of a short mini_sd whose store and run are in ``folder``."""
    with (MINIATURES / "sd" / "prompts.csv").open(encoding="utf-8") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)][:PROMPTS]
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))

    def flags(folder: pathlib.Path) -> list[str]:
        fields = {
            "extract.prompts": tmp_path / "prompts.txt",
            "extract.store": folder / "store",
            "extract.batch_size": 8,
            "extract.shard_samples": 24,
            "run": folder / "run",
            "train.steps": STEPS,
            "train.batch_size": 64,
            "train.checkpoint_every": 1000,
            "data.lanes": 2,
            "logging.every": 5,
        }
        return ["--config=mini_sd", *(f"--config.{name}={value}" for name, value in fields.items())]

    return flags


def params(flags: list[str]) -> dict[str, np.ndarray]:
    config, _ = cli.parse(["test", *flags], "")
    mesh = sharding.make_mesh(1, 1, config.train.batch_size, 512)
    state = checkpoints.restore(pathlib.Path(config.run), STEPS, 512, 128, config.sae, config.train, mesh)
    return jax.device_get(state.params)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def submit(cluster, logs: pathlib.Path, *arguments: str) -> str:
    """Submit the chain of jobs on both nodes, and return what pipeline.sh prints."""
    return cluster.run(
        *("bash", "launch/slurm/pipeline.sh", *arguments),
        extract_resources="--array=0-1",
        train_resources="--nodes=2 --ntasks-per-node=1",
        command_resources="--ntasks=1",
        logs=str(logs),
    )


@pytest.mark.slow
def test_the_chain_with_a_killed_task_and_a_requeued_job_equals_a_local_run(cluster, environment, overrides, tmp_path):
    here, there, logs = tmp_path / "here", tmp_path / "there", tmp_path / "logs"
    out = submit(cluster, logs, *overrides(there))
    jobs = dict(re.findall(r"(\w+) +job (\d+)", out))
    assert list(jobs) == ["extract", "train", "evaluate", "export"]

    def log(step: str) -> str:
        # A killed process can end within a character of its progress bar.
        return "".join(path.read_text(errors="replace") for path in sorted(logs.glob(f"revelio-{step}-*.out")))

    # Kill the processes of one task of the array after its first shard, as the system does when memory runs out.
    cluster.wait((there / "store/shards/00001.json").exists, 300, "the first shard of worker 1")
    cluster.run("scancel", "--signal=KILL", f"{jobs['extract']}_1.0")
    # Requeue training after its first steps.
    metrics = there / "run/metrics.jsonl"
    cluster.wait(lambda: metrics.exists() and metrics.read_text().count("\n") > 2, 300, "the first steps")
    cluster.run("scontrol", "requeue", jobs["train"])
    cluster.wait(lambda: set(cluster.states().values()) == {"COMPLETED"}, 300, f"all jobs:\n{log('train')}")

    extraction, training = log("extract"), log("train")
    assert len(re.findall(r"worker 0 of 2: set by task 0 of the SLURM array", extraction)) == 1
    assert len(re.findall(r"worker 1 of 2: set by task 1 of the SLURM array", extraction)) == 2
    assert "ended by signal 9; back into the queue, restart 1 of at most 10" in extraction
    (stopped,) = set(re.findall(r"is stopped; step (\d+) is saved", training))
    assert 0 < int(stopped) < STEPS
    assert training.count(f"is finished: {STEPS} steps") == 2  # both processes
    assert (there / "run/evaluation.json").exists()
    assert (there / "run/export/sae_weights.safetensors").exists()

    local = {**environment, "XLA_FLAGS": devices(2)}  # the mesh of the two processes
    for command in ("extract", "train"):
        done = subprocess.run(
            ["revelio", command, *overrides(here)], cwd=ROOT, env=local, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert contents(there / "store") == contents(here / "store")
    expected = params(overrides(here))
    for name, value in params(overrides(there)).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.slow
def test_wrong_input_is_not_repeated_and_cancels_the_rest_of_the_chain(cluster, tmp_path):
    logs = tmp_path / "logs"
    out = submit(cluster, logs, "--config=mini_sd", "--config.sae.k=0")
    numbers = set(re.findall(r"job (\d+)", out))

    def states() -> dict[str, str]:
        return {job: state for job, state in cluster.states().items() if job.partition("_")[0] in numbers}

    cluster.wait(lambda: not {"PENDING", "RUNNING", "COMPLETING"} & set(states().values()), 300, "the end of all jobs")
    assert sorted(states().values()) == ["CANCELLED"] * 3 + ["FAILED"] * 2
    for path in logs.iterdir():
        assert "config.sae.k is 0; it must be at least 1" in path.read_text()
        assert "restart" not in path.read_text()


@pytest.mark.slow
def test_a_killed_job_is_queued_again_and_a_canceled_one_is_not(cluster, tmp_path):
    script, log, starts = tmp_path / "job.sh", tmp_path / "log", tmp_path / "starts"
    command = f"run srun bash -c 'echo >> {starts}; sleep 100'"
    script.write_text(f"#!/usr/bin/env bash\nsource launch/slurm/environment.sh || exit 2\n{command}\n")
    options = ("--parsable", "--requeue", "--open-mode=append", f"--output={log}")
    job = cluster.run("sbatch", *options, str(script)).strip()

    def is_started(times: int) -> bool:
        return starts.exists() and len(starts.read_text()) == times

    cluster.wait(lambda: is_started(1), 90, "the first start of the job")
    cluster.run("scancel", "--signal=KILL", f"{job}.0")
    cluster.wait(lambda: is_started(2), 90, "the second start of the job")
    cluster.run("scancel", job)
    cluster.wait(lambda: cluster.states()[job] == "CANCELLED", 90, "the end of the job")
    assert log.read_text().count("back into the queue") == 1
