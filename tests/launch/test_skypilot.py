"""The commands of launch/skypilot, with the variables that SkyPilot sets. SkyPilot is not installed, nothing starts."""

import os
import subprocess

import yaml

from extract import workers
from revelio_jax import cli
from revelio_jax.config import Config
from revelio_jax.store import Worker
from tests.helpers import ROOT

FOLDER = ROOT / "launch" / "skypilot"


def configs(task: str, tmp_path) -> list[Config]:
    """Return the config of the command that each machine of a task runs, parsed by the project's command line."""
    document = yaml.safe_load((FOLDER / f"{task}.yaml").read_text())
    (tmp_path / "revelio").write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "revelio").chmod(0o755)
    script = f"set -a; source {FOLDER}/environment.env\n" + document["run"].replace("cd /revelio", "")
    count = document["num_nodes"]
    parsed = []
    for rank in range(count):
        variables = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NUM_NODES": str(count),
            "SKYPILOT_NODE_IPS": "\n".join(f"10.0.0.{node}" for node in range(count)),
        }
        done = subprocess.run(["bash", "-ec", script], env=variables, capture_output=True, text=True, check=True)
        step, *flags = done.stdout.splitlines()
        assert step == task
        parsed.append(cli.parse([task, *flags], "")[0])
    return parsed


def test_models_are_downloaded_to_the_volume():
    (line,) = [line for line in (FOLDER / "environment.env").read_text().splitlines() if line.startswith("HF_HOME=")]
    (mount,) = yaml.safe_load((FOLDER / "extract.yaml").read_text())["volumes"]
    assert line.removeprefix("HF_HOME=").startswith(f"{mount}/")


def test_each_machine_of_extraction_is_another_worker(tmp_path):
    numbers = [workers.find(config.extract, {}).worker for config in configs("extract", tmp_path)]
    assert numbers == [Worker(number, 4) for number in range(4)]


def test_each_machine_of_training_is_another_process_and_the_first_one_is_the_coordinator(tmp_path):
    for number, config in enumerate(configs("train", tmp_path)):
        mesh = config.mesh
        assert (mesh.distributed, mesh.process, mesh.processes, config.data.lanes) == (True, number, 2, 2)
        assert mesh.coordinator == "10.0.0.0:1234"
        assert config.train.resume
