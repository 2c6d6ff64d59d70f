"""Shards are computed and written side by side, alone and with other workers: real stores, real processes."""

import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import types
import weakref

import numpy as np
import pytest

from extract import run
from revelio_jax.errors import InputError, report_errors
from revelio_jax.store import SitePlan, StorePlan, StoreWriter, Worker, check, open_store
from tests.helpers import ROOT

ROWS, D = 40, 64  # of a shard, 10 kB
SITE = "clip.layer.0"


JOB = types.SimpleNamespace(unit="prompt", passes=1)


def compute_shard(shard, progress):
    """Rows of a shard, a function of its number alone; four batches of a sample each."""
    for _ in range(4):
        progress(1)
    index = {"sample": 4 * shard + np.arange(ROWS) // 10, "position": np.arange(ROWS) % 10}
    rows = np.random.default_rng(shard).normal(size=(ROWS, D)).astype(np.float32)
    return {SITE: {"activations": rows, "timestep": np.full(ROWS, -1), **index}}


def mode_of(compute):
    """A mode whose shards ``compute(shard, progress)`` returns; a shard has 4 samples."""
    return types.SimpleNamespace(shard_rows=lambda _, samples, progress: compute(samples.start // 4, progress))


def begin(location, count, writer=StoreWriter):
    plan = StorePlan((SitePlan(SITE, D, (ROWS,) * count),), "float32", 8, 4, 4 * count, {"model": {}})
    return writer(str(location), plan, [{"id": i, "prompt": f"p{i}"} for i in range(4 * count)])


def work(location, count, number=0, workers=1, seconds=0.0):
    """Write one worker's part of a store, as each process of these tests does; a batch takes ``seconds``."""

    def compute_slowly(shard, progress):
        return compute_shard(shard, lambda n: (time.sleep(seconds), progress(n)))

    with report_errors():
        writer = begin(location, count)
        if not writer.finished:
            run.write_missing_shards(mode_of(compute_slowly), JOB, writer, Worker(number, workers))


def start(location, count, number=0, workers=1, seconds=0.0, **options):
    program = (
        f"import sys; sys.path[:0] = {[str(ROOT), os.path.dirname(__file__)]}; import test_shards; "
        f"test_shards.work({str(location)!r}, {count}, {number}, {workers}, {seconds})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TQDM_DISABLE": "1"},
        **options,
    )


def wait_for(location, markers):
    until = time.monotonic() + 60
    while len(list(pathlib.Path(location).glob("shards/*.json"))) < markers:
        assert time.monotonic() < until, "no shard was written in time"
        time.sleep(0.005)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in pathlib.Path(folder).rglob("*") if p.is_file()}


def test_a_shard_is_computed_while_the_previous_one_is_written(tmp_path):
    second_is_computed = threading.Event()

    class Writer(StoreWriter):
        def write_shard(self, index, sites):
            assert index or second_is_computed.wait(30), "shard 1 waits for shard 0"
            super().write_shard(index, sites)

    def compute(shard, progress):
        rows = compute_shard(shard, progress)
        if shard == 1:
            second_is_computed.set()
        return rows

    run.write_missing_shards(mode_of(compute), JOB, begin(tmp_path, 3, Writer), Worker())
    assert open_store(str(tmp_path)).site().rows == 3 * ROWS


def test_at_most_two_shards_are_in_memory(tmp_path):
    alive, most = weakref.WeakSet(), 0

    class Hashable(np.ndarray):
        """An array with a hash, so that a set can count it."""

        __hash__ = object.__hash__

    def compute(shard, progress):
        nonlocal most
        rows = compute_shard(shard, progress)
        rows[SITE]["activations"] = rows[SITE]["activations"].view(Hashable)
        alive.add(rows[SITE]["activations"])
        most = max(most, len(alive))
        return rows

    run.write_missing_shards(mode_of(compute), JOB, begin(tmp_path, 20), Worker())
    assert most <= 2


def test_an_error_in_the_writing_thread_ends_the_run_at_the_next_batch(tmp_path):
    failed = threading.Event()

    class Full(StoreWriter):
        def write_shard(self, index, sites):
            failed.set()
            raise InputError("no space")

    def compute(shard, progress):
        if shard == 1:
            assert failed.wait(30)
            for _ in range(1000):  # the thread has raised; progress reports it in a moment
                progress(0)
                time.sleep(0.01)
            pytest.fail("the shard was computed to its end")
        return compute_shard(shard, progress)

    with pytest.raises(InputError, match="no space"):
        run.write_missing_shards(mode_of(compute), JOB, begin(tmp_path, 5, Full), Worker())
    work(tmp_path, 5)  # the lock was released
    assert open_store(str(tmp_path)).site().rows == 5 * ROWS


def test_a_full_disk_is_reported_in_one_line_and_the_command_resumes(tmp_path):
    """A limit on file sizes stands in for the full disk: the system refuses the write either way."""
    work(tmp_path / "whole", 3)
    size = resource.RLIMIT_FSIZE, (8000, 8000)  # less than one shard
    process = start(tmp_path / "full", 3, preexec_fn=lambda: resource.setrlimit(*size))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(f"error: store {tmp_path / 'full'} cannot be written: File too large; ")
    assert err.count("\n") == 1
    assert out == ""
    assert not list((tmp_path / "full").glob("shards/*"))
    work(tmp_path / "full", 3)
    assert tree(tmp_path / "full") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_killed_and_restarted_workers_write_the_store_of_one_worker(tmp_path):
    work(tmp_path / "whole", 40)
    store, moments = tmp_path / "shared", random.Random(0)
    running = {number: start(store, 40, number, 4, 0.005) for number in range(4)}
    kills = 0
    for markers in range(1, 25, 4):
        wait_for(store, markers)
        time.sleep(moments.uniform(0, 0.03))
        alive = [number for number, process in running.items() if process.poll() is None]
        for number in moments.sample(alive, min(2, len(alive))):
            running[number].kill()
            _, err = running[number].communicate()
            assert err == ""
            kills += running[number].returncode == -signal.SIGKILL
            running[number] = start(store, 40, number, 4, 0.005)
    assert kills >= 6
    outs = [process.communicate(timeout=60) for process in running.values()]
    assert [err for _, err in outs] == [""] * 4
    assert [process.returncode for process in running.values()] == [0] * 4
    assert tree(store) == tree(tmp_path / "whole")


def test_a_worker_that_ends_first_reports_the_missing_shards_of_the_others(tmp_path, capsys):
    work(tmp_path, 7, 1, 3)
    work(tmp_path, 7, 2, 3)
    first, second = capsys.readouterr().out.splitlines()
    assert "worker 1 of 3 is finished; 5 of 7 shards are missing: 3 of worker 0, 2 of worker 2;" in first
    assert "worker 2 of 3 is finished; 3 of 7 shards are missing: 3 of worker 0;" in second
    with pytest.raises(InputError, match="unfinished"):
        open_store(str(tmp_path))
    work(tmp_path, 7, 0, 3)
    work(tmp_path, 7, 9, 20)  # a worker without a shard
    assert open_store(str(tmp_path)).site().rows == 7 * ROWS


def test_a_store_that_another_run_is_writing_is_refused_until_it_ends(tmp_path):
    def refused(number, workers):
        with pytest.raises(InputError) as error:
            run.write_missing_shards(mode_of(compute_shard), JOB, begin(tmp_path, 12), Worker(number, workers))
        return str(error.value)

    holder = start(tmp_path, 12, 1, 4, seconds=60.0)
    until = time.monotonic() + 60
    while not (tmp_path / ".locks/1-of-4").exists() and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.1)  # the lock follows the creation of its file
    before = tree(tmp_path)
    assert refused(0, 1) == refused(1, 4) == refused(1, 2) == refused(3, 6)
    assert "is being written by another run, as worker 1 of 4" in refused(5, 8)
    assert {k: v for k, v in tree(tmp_path).items() if ".locks" not in k} == {
        k: v for k, v in before.items() if ".locks" not in k
    }
    work(tmp_path, 12, 0, 2)  # a worker with other shards may run at the same time
    assert sorted(check.read_state(str(tmp_path)).done) == [0, 2, 4, 6, 8, 10]
    holder.kill()
    holder.communicate()
    work(tmp_path, 12)
    assert not (tmp_path / ".locks").exists()


def test_a_remote_store_is_written_without_locks():
    work("memory://shards/", 5, 0, 2)
    work("memory://shards/", 5, 1, 2)
    assert open_store("memory://shards/").site().rows == 5 * ROWS
