"""Runs of several processes train to the parameters of a single process, and stop together."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from revelio_jax.config import MeshConfig
from revelio_jax.errors import InputError
from revelio_jax.sae import sharding
from revelio_jax.train import train
from revelio_jax.training import checkpoints, processes
from tests.helpers.configs import changed


@pytest.fixture
def split(base, with_train):
    """A function that returns the config of a short run on a mesh of 8 devices with two lanes."""

    def make(run, data, feature, **fields):
        config = with_train(
            base,
            run=str(run),
            steps=50,
            decay_share=0.0,
            data=data,
            feature=feature,
            **{"lanes": 2, **fields},
        )
        # Latents die early, so that AuxK is active.
        return dataclasses.replace(config, sae=dataclasses.replace(config.sae, dead_after_rows=500))

    return make


@pytest.fixture
def start(config_file, tmp_path, unused_port):
    """A function that starts two processes of 4 devices each on a config."""
    running = []

    def begin(config):
        path = config_file(tmp_path / "config.py", config)
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
        for process in range(2):
            arguments = {"distributed": True, "coordinator": f"localhost:{unused_port}", "processes": 2}
            arguments = [f"--config.mesh.{name}={value}" for name, value in arguments.items()]
            command = [sys.executable, "-m", "revelio_jax.train", "--config", path, *arguments]
            running.append(
                subprocess.Popen(
                    [*command, f"--config.mesh.process={process}"],
                    env=os.environ | {"XLA_FLAGS": flags},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return running

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def final_params(config, mesh):
    run = pathlib.Path(config.run)
    arguments = (checkpoints.newest_step(run), 16 * config.sae.expansion, 16, config.sae, config.train, mesh)
    return jax.device_get(checkpoints.restore(run, *arguments).params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "fields"),
    [
        ((1, 8), {}),
        ((2, 4), {"steps_per_dispatch": 4}),
        ((1, 8), {"steps_per_dispatch": 4, "resident": "yes", "lanes": 2}),  # devices exchange rows
        ((2, 4), {"resident": "yes", "lanes": 8}),  # devices hold their own rows
    ],
    ids=str,
)
def test_two_processes_train_to_the_parameters_of_one(split, start, tmp_path, mesh, fields):
    # Sums of other orders differ by rounding. In many more steps, one row would choose another latent at a near tie.
    one, two = (
        changed(split(tmp_path / name, *mesh, **own), steps=12)
        for name, own in (("one", {"lanes": fields.get("lanes", 2)}), ("two", fields))
    )
    for process in start(two):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    train(one)
    here = sharding.make_mesh(1, 1, 64, 48)
    params = final_params(two, here)
    for name, value in final_params(one, here).items():
        np.testing.assert_allclose(params[name], value, atol=1e-5, err_msg=name)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("one", "two")]
    assert lines == [1, 1]  # only the first process writes


@pytest.mark.slow
def test_sigterm_to_one_of_two_stops_both_after_the_same_step(split, start, tmp_path):
    config = split(tmp_path / "run", 1, 8, checkpoint_every=10**6, steps_per_dispatch=3)
    config = changed(config, steps=10**6, every=1)
    both = start(config)
    log = tmp_path / "run/metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 3) and both[0].poll() is None:
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [processes.STOPPED] * 2, outputs
    step = checkpoints.newest_step(tmp_path / "run")
    assert step > 3
    assert step % 3 == 0
    assert all(f"step {step} is saved" in out for out, _ in outputs)


def refusal(**fields):
    with pytest.raises(InputError) as error, processes.joined(MeshConfig(**fields), str):
        pytest.fail("the block ran")
    return str(error.value)


def test_peers_without_distributed_are_refused():
    for fields in ({"coordinator": "localhost:1"}, {"processes": 2}, {"process": 1}):
        assert refusal(**fields).startswith("config.mesh.distributed is False; it must be True")


def test_a_process_number_out_of_range_is_refused():
    message = refusal(distributed=True, coordinator="localhost:1", processes=2, process=2)
    assert message == "config.mesh.process is 2; it must be at least 0 and below config.mesh.processes, 2"
