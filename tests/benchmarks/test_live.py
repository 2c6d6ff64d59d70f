"""The benchmark of live runs trains in both ways, with a real pipeline, and writes the rows of its docstring."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
    "--config=mini_sd", "--samples=60", "--shard_samples=10", "--live_shards=3", "--batch=64", "--steps=12",
    "--checkpoint_every=4", "--rounds=1",
]  # fmt: skip


@pytest.mark.slow
def test_both_ways_train(tmp_path, quick_device):
    out = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, "tests/benchmarks/live.py", "--json", out, *SMALL],
        cwd=ROOT,
        env=quick_device | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())
    ways = {"extract_s", "train_s", "store_cpu_s", "store_mb", "live_s", "live_cpu_s", "live_mb"}
    assert set(row) == ways | {"round", "ratio", "cpu_ratio"}
    assert row["cpu_ratio"] == pytest.approx(row["store_cpu_s"] / row["live_cpu_s"])
    assert row["ratio"] == pytest.approx((row["extract_s"] + row["train_s"]) / row["live_s"])
    # 3 of 6 shards at most, and one that is being written.
    assert 0 < row["live_mb"] < 0.75 * row["store_mb"]
