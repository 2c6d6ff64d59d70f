"""The main workflow as a user runs it: seven commands on the miniature pipeline, with less data and fewer steps."""

import csv
import json
import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT

PROMPTS = ROOT / "extract" / "miniature" / "sd" / "prompts.csv"


@pytest.fixture(scope="module")
def commands(tmp_path_factory, one_device):
    """A function ``run(module, *flags)`` that runs a command in a new process, on 1500 of the prompts."""
    folder = tmp_path_factory.mktemp("way")
    rows = list(csv.DictReader(PROMPTS.open(encoding="utf-8")))
    with (folder / "prompts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(random.Random(0).sample(rows, 1500))

    def run(module: str, *flags: str) -> subprocess.CompletedProcess:
        overrides = [
            "--config=configs/mini_sd.py",
            f"--config.extract.prompts={folder / 'prompts.csv'}",
            f"--config.extract.store={folder / 'store'}",
            f"--config.run={folder / 'run'}",
            "--config.train.steps=600",
            "--config.sae.dead_after_rows=100000",
            "--config.steer.steps=8",
        ]
        command = [sys.executable, "-m", module, *overrides, *flags]
        return subprocess.run(command, cwd=ROOT, env=one_device, capture_output=True, text=True)

    run.folder = folder / "run"
    return run


@pytest.mark.slow
def test_extract_train_evaluate_export_steer(commands):
    for module in ("extract.run", "revelio_jax.train", "revelio_jax.evaluate", "revelio_jax.export"):
        done = commands(module)
        assert done.returncode == 0, f"{module}: {done.stderr}"
    evaluation = json.loads((commands.folder / "evaluation.json").read_text())
    assert evaluation["fvu"] < 0.05
    assert evaluation["dead_fraction"] < 0.2

    done = commands("revelio_jax.steering.latents", "--concept=style=glossy 3d")
    assert done.returncode == 0, done.stderr
    flags = ("--concept=glossy 3d", "--strength=-1,0", "--measure=24")
    done = commands("revelio_jax.steering", *flags)
    assert done.returncode == 0, done.stderr
    results = json.loads((commands.folder / "steering" / "results.json").read_text())
    plain, steered = results["measured"]["0"], results["measured"]["-1"]
    assert plain["concept"]["mean"] > 0.7
    assert steered["concept"]["mean"] < 0.3
    assert steered["kept"]["mean"] > plain["kept"]["mean"] - 0.25
    assert steered["others_label"]["mean"] > plain["others_label"]["mean"] - 0.25
    strip = np.asarray(Image.open(commands.folder / "steering" / "glossy_3d.png"))
    assert strip.std() > 10

    flags = ("--concept=style=glossy 3d", "--config.steer.steps=6", "--config.benchmark.strengths=-2")
    flags += ("--config.benchmark.prompts=8", "--config.benchmark.seeds=1", "--config.benchmark.repetitions=0")
    methods = "steer rule=swap,steer rule=paper,difference_of_means,random_direction"
    flags += ("--config.benchmark.add=yes", f"--config.benchmark.methods={methods}")
    done = commands("revelio_jax.benchmark.command", *flags)
    assert done.returncode == 0, done.stderr
    (removed, added) = json.loads((commands.folder / "benchmark" / "results.json").read_text())["tasks"]
    left = {row["method"]: row["figures"]["outcome"]["concept"]["mean"] for row in removed["rows"]}
    assert left["steer rule=swap"] < left["random_direction"]
    assert {row["method"] for row in added["rows"]} == set(left) > {"plain", "steer rule=paper", "difference_of_means"}
