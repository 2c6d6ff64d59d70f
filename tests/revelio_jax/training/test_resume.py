"""Resume after kills gives the same bits; SIGTERM saves a checkpoint; the newest and the best are kept."""

import dataclasses
import json
import multiprocessing
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import revelio_jax.train as train_module
from revelio_jax.sae import sharding
from revelio_jax.train import train
from revelio_jax.training import checkpoints, processes

KILLS, STEPS, EVERY = 8, 500, 20


@pytest.fixture(scope="module")
def start_fork():
    """A function that runs the command in a new process, forked from one that has imported the trainer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([train_module.__name__])

    def start(*arguments):
        process = context.Process(target=train_module.main, args=[arguments])
        process.start()
        return process

    return start


def final_state(config):
    run = pathlib.Path(config.run)
    arguments = (checkpoints.newest_step(run), 16 * config.sae.expansion, 16, config.sae, config.train)
    return jax.device_get(checkpoints.restore(run, *arguments, sharding.make_mesh(1, 1, 64, 48)))


def wait_for_step(run, step, process):
    while checkpoints.newest_step(run) <= step and process.is_alive():
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("products", ["sparse", "dense"])
def test_bfloat16_products_resume_with_the_same_bits(base, with_train, tmp_path, products):
    """The rounded matrices are not saved; they are made again from the parameters."""
    sae = dataclasses.replace(base.sae, products=products, matmul_dtype="bfloat16", dead_after_rows=500)
    base = dataclasses.replace(base, sae=sae)
    whole = with_train(base, run=str(tmp_path / "whole"), steps=40, checkpoint_every=20, decay_share=0.0)
    parts = with_train(whole, run=str(tmp_path / "parts"))
    train(whole)
    train(with_train(parts, steps=20))
    train(with_train(parts, resume=True))
    ours, theirs = final_state(parts), final_state(whole)
    assert ours.rounded["W_dec_FD"].dtype == "bfloat16"
    for (name, left), right in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=jax.tree_util.keystr(name))


@pytest.mark.slow
def test_a_run_killed_eight_times_ends_with_the_same_bits(base, with_train, config_file, start_fork, tmp_path):
    whole = with_train(base, run=str(tmp_path / "whole"), steps=STEPS, checkpoint_every=EVERY, ema=0.99)
    parts = with_train(whole, run=str(tmp_path / "parts"))
    path, run = config_file(tmp_path / "config.py", parts), tmp_path / "parts"
    moments, killed_at = random.Random(0), []
    while len(killed_at) < KILLS:
        begun = checkpoints.newest_step(run)
        process = start_fork("--config", path, "--config.train.resume=True")
        if len(killed_at) % 4 == 0:  # while it starts, restores or compiles
            time.sleep(moments.uniform(0, 1))
        else:  # at some step after a new checkpoint, or while that is being written
            wait_for_step(run, begun, process)
            time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it was neither finished nor broken
        killed_at.append(checkpoints.newest_step(run))
    assert killed_at == sorted(killed_at)
    assert 0 < killed_at[-1] < STEPS
    process = start_fork("--config", path, "--config.train.resume=True")
    process.join(timeout=300)
    assert process.exitcode == 0
    train(whole)
    ours, theirs = final_state(parts), final_state(whole)
    assert ours.step == STEPS
    for (name, left), right in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=jax.tree_util.keystr(name))
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("parts", "whole")
    ]
    assert [line["step"] for line in logs[0]] == list(range(50, STEPS + 1, 50))
    for field in ("loss", "fvu", "dead_fraction", "coverage"):
        assert [line[field] for line in logs[0]] == [line[field] for line in logs[1]]


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_its_status(base, with_train, config_file, tmp_path):
    config = with_train(base, run=str(tmp_path / "run"), steps=10**6, checkpoint_every=10**6, every=1)
    command = [sys.executable, "-m", "revelio_jax.train", "--config", config_file(tmp_path / "config.py", config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run/metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 5) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == processes.STOPPED == 143, err
    step = checkpoints.newest_step(tmp_path / "run")
    assert step >= 5
    assert f"step {step} is saved, --config.train.resume=yes continues it" in out
    fvus = [json.loads(line)["fvu"] for line in log.read_text().splitlines()]
    assert checkpoints.read_fvu_mean(tmp_path / "run", step) == (sum(fvus), step)
    before = signal.getsignal(signal.SIGTERM)
    train(with_train(config, steps=step + 3, resume=True))
    assert checkpoints.newest_step(tmp_path / "run") == step + 3
    assert signal.getsignal(signal.SIGTERM) == before
    # The step that SIGTERM saved is never the best; its FVUs count for the next checkpoint.
    fvus += [json.loads(line)["fvu"] for line in log.read_text().splitlines()[step:]]
    metrics = json.loads((tmp_path / f"run/checkpoints/{step + 3}/metrics/metrics").read_text())
    assert metrics == {"fvu": sum(fvus) / (step + 3)}
    assert not (tmp_path / f"run/checkpoints/{step}/metrics").exists()


@pytest.mark.slow
def test_the_newest_and_the_best_checkpoints_are_kept(base, with_train, tmp_path):
    config = with_train(base, run=str(tmp_path / "run"), steps=100, checkpoint_every=10, keep=2)
    train(config)
    # From the 5th on the rate is so high that the FVU rises.
    train(with_train(config, steps=160, learning_rate=3.0, decay_share=0.0, resume=True))
    steps = sorted(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir())
    assert len(steps) == 3
    assert steps[1:] == [150, 160] == [160 - 10, checkpoints.newest_step(tmp_path / "run")]
    assert checkpoints.ranked_steps(tmp_path / "run", "best")[0] == steps[0] <= 110


def test_a_checkpoint_that_a_crash_interrupted_is_ignored(trained, with_train, tmp_path):
    shutil.copytree(trained.run, tmp_path / "run")
    finished = tmp_path / "run/checkpoints/600"
    cut = finished.with_name("620" + ocp.utils.TMP_DIR_SUFFIX + "1")
    shutil.copytree(finished, cut)
    (cut / "_CHECKPOINT_METADATA").unlink()
    assert checkpoints.newest_step(tmp_path / "run") == checkpoints.newest_step(pathlib.Path(trained.run)) == 600
    train(with_train(trained, run=str(tmp_path / "run"), steps=640, checkpoint_every=20, resume=True))
    assert checkpoints.newest_step(tmp_path / "run") == 640
    assert not cut.exists()
