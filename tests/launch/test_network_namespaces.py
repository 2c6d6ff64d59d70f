"""Training on hosts that are apart: a host that is cut off ends all processes, and the run resumes to the same bits."""

import itertools
import os
import pathlib
import re
import sys
import time

import jax
import numpy as np
import pytest

from revelio_jax.sae import sharding
from revelio_jax.training import checkpoints
from tests.helpers import ROOT, hosts
from tests.helpers.configs import changed


@pytest.fixture
def network():
    if reason := hosts.missing():
        pytest.skip(f"no hosts that are apart: {reason}")
    with hosts.network(2) as network:
        yield network


@pytest.fixture
def start(network, config_file, tmp_path):
    """A function that starts a run on both hosts, with one device each."""
    runs = []

    def begin(config, *flags):
        path = config_file(tmp_path / f"config_{len(runs)}.py", config)
        xla = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla}
        address = f"{network.addresses[0]}:{1234 + len(runs)}"
        fields = {"distributed": True, "coordinator": address, "processes": 2, "timeout": 10}
        command = [sys.executable, "-m", "revelio_jax.train", "--config", path, *flags]
        command += [f"--config.mesh.{name}={value}" for name, value in fields.items()]
        runs.append(
            [network.start(host, [*command, f"--config.mesh.process={host}"], environment) for host in range(2)]
        )
        return runs[-1]

    yield begin
    for process in itertools.chain(*runs):
        process.kill()
        process.communicate()


def final_state(config):
    run = pathlib.Path(config.run)
    place = (checkpoints.newest_step(run), 48, 16, config.sae, config.train, sharding.make_mesh(1, 1, 64, 48))
    return jax.tree.leaves(jax.device_get(checkpoints.restore(run, *place)))


@pytest.mark.slow
def test_a_host_that_is_cut_off_ends_both_processes_and_the_run_resumes_to_the_same_bits(
    network, start, base, with_train, tmp_path
):
    config = with_train(
        base, run=str(tmp_path / "run"), steps=10**6, checkpoint_every=50, decay_share=0.0, data=1, feature=2, lanes=2
    )
    both = start(changed(config, every=1))
    while checkpoints.newest_step(tmp_path / "run") < 50 and both[0].poll() is None:
        time.sleep(0.05)
    network.cut(1)
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [1, 1], outputs
    saved = checkpoints.newest_step(tmp_path / "run")
    assert saved >= 50, outputs
    for output in outputs:
        (line,) = re.findall(r"^error: .*", output, re.MULTILINE)
        assert re.match(rf"error: lost contact with .*process.*; step {saved} of .* is saved", line)
        assert output.endswith(line + "\n")
        assert "stack trace" not in output

    network.heal(1)
    config = changed(config, steps=saved + 20)
    whole = changed(config, run=str(tmp_path / "whole"))
    for process in start(config, "--config.train.resume=yes") + start(whole):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    for one, two in zip(final_state(config), final_state(whole), strict=True):
        np.testing.assert_array_equal(one, two)
