"""The benchmark of the input path writes the rows that its docstring describes."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MODES = ["load", "chunks", "loader", "transfer", "host feed", "places", "resident feed", "train host", "train resident"]


@pytest.fixture
def benchmark(tmp_path, quick_device):
    """``benchmark(*flags)`` runs the benchmark on one device and returns the process and its rows."""

    def run(*flags):
        out = tmp_path / "rows.json"
        command = [sys.executable, "tests/benchmarks/input_path.py", "--json", out, "--folder", tmp_path, *flags]
        environment = quick_device | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done, json.loads(out.read_text())["rows"] if out.exists() else None

    return run


@pytest.mark.slow
def test_every_mode_has_a_row(benchmark):
    done, rows = benchmark(
        "--gb=0.001", "--d=8", "--latents=32", "--rounds=1", "--steps=30", "--dtype=float16", "--steps-per-dispatch=5"
    )
    assert done.returncode == 0, done.stderr
    assert [row["mode"] for row in rows] == MODES
    assert len(done.stdout.splitlines()) == 2 + len(rows)
    for row in rows:
        assert row["rows_per_s"] > 0
        assert row["mb_per_s"] == pytest.approx(row["rows_per_s"] * 8 * 2 / 1e6)
        assert (row["wait_share"] is None) == (not row["mode"].startswith("train"))
    assert all(0 < row["wait_share"] < 1 for row in rows[-2:])


@pytest.mark.slow
def test_a_wrong_flag_is_refused(benchmark):
    done, rows = benchmark("--steps=31")
    assert (done.returncode, rows, done.stdout) == (2, None, "")
    assert done.stderr == "error: --steps is 31; it must be 0, or a multiple of 10 and at least 30\n"
