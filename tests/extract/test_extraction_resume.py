"""Killed, stopped and parallel runs write the same store as one uninterrupted run."""

import multiprocessing
import os
import random
import signal
import subprocess
import time

import pytest

from tests.helpers import ROOT
from tests.helpers.extraction import command, read_files, run_extract


@pytest.mark.slow
def test_a_killed_run_resumes_and_writes_the_store_of_an_uninterrupted_run(text_config, tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(" ".join(["cat"] * (1 + n % 9)) for n in range(40)))
    overrides = {"extract__prompts": tmp_path / "many.txt", "extract__shard_samples": 1}
    process = subprocess.Popen(command(text_config, **overrides), cwd=ROOT, stderr=subprocess.DEVNULL)
    shards = tmp_path / "store/shards"
    while process.poll() is None and len(list(shards.glob("*.json"))) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(list(shards.glob("*.json")))
    assert 5 <= done < 40
    assert not (tmp_path / "store/manifest.json").exists()
    untouched = {p.name: p.stat().st_mtime_ns for p in shards.glob("*.json")}
    run_extract(text_config, **overrides)
    assert {name: (shards / name).stat().st_mtime_ns for name in untouched} == untouched
    run_extract(text_config, **overrides, extract__store=tmp_path / "whole")
    assert read_files(tmp_path / "store") == read_files(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_is_reported_in_one_line_and_the_run_resumes(text_config, tmp_path):
    (tmp_path / "many.txt").write_text("cat\n" * 40)
    overrides = {"extract__prompts": tmp_path / "many.txt", "extract__shard_samples": 1}
    process = subprocess.Popen(
        command(text_config, **overrides),
        cwd=ROOT,
        env=os.environ | {"TQDM_DISABLE": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and len(list((tmp_path / "store/shards").glob("*.json"))) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "stopped by Ctrl-C\n")
    assert not (tmp_path / "store/manifest.json").exists()
    run_extract(text_config, **overrides)
    run_extract(text_config, **overrides, extract__store=tmp_path / "whole")
    assert read_files(tmp_path / "store") == read_files(tmp_path / "whole")


def run_worker(text_config, overrides, rank):
    """Run the command as one of the four processes that torchrun starts."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "4", "TQDM_DISABLE": "1"}
    run_extract(text_config, **overrides)


@pytest.mark.slow
def test_four_workers_with_restarts_write_the_store_of_one_worker(text_config, tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(" ".join(["cat"] * (1 + n % 9)) for n in range(120)))
    overrides = {"extract__prompts": tmp_path / "many.txt", "extract__shard_samples": 1}
    processes = multiprocessing.get_context("forkserver")  # its processes do not import torch again
    processes.set_forkserver_preload(["extract.text_encoder", "transformers.models.clip.modeling_clip"])

    def start(rank):
        process = processes.Process(target=run_worker, args=(text_config, overrides, rank))
        process.start()
        return process

    shards, moments = tmp_path / "store/shards", random.Random(0)
    running, kills = [start(rank) for rank in range(4)], 0
    for rank in (2, 0):
        seen = len(list(shards.glob("*.json")))
        while len(list(shards.glob("*.json"))) < seen + 2 and running[rank].is_alive():
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        running[rank].kill()
        running[rank].join()
        kills += running[rank].exitcode == -signal.SIGKILL
        running[rank] = start(rank)
    assert kills
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * 4
    run_extract(text_config, **overrides, extract__store=tmp_path / "whole")
    assert read_files(tmp_path / "store") == read_files(tmp_path / "whole")
