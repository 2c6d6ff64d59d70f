"""The benchmark of large stores has a row for each store and command."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def benchmark(tmp_path):
    """``benchmark(*flags)`` runs the benchmark and returns the process and its rows."""

    def run(*flags):
        out = tmp_path / "rows.json"
        command = [sys.executable, "tests/benchmarks/load.py", "--json", out, "--folder", tmp_path, *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done, json.loads(out.read_text())["rows"] if out.exists() else None

    return run


@pytest.mark.slow
def test_every_store_and_command_has_a_row(benchmark):
    done, rows = benchmark("--small", "--commands=status,verify,loader")
    assert done.returncode == 0, done.stderr
    names = ["write", "status", "verify", "loader"]
    assert [(row["store_rows"], row["command"]) for row in rows] == [(n, c) for n in (40_000, 160_000) for c in names]
    assert len(done.stdout.splitlines()) == 2 + len(rows)
    for row in rows:
        assert row["seconds"] > 0
        assert (row["rows_per_s"] is not None) == (row["command"] in ("verify", "loader"))
        assert row["start_s"] is None or row["start_s"] < row["seconds"]


@pytest.mark.slow
def test_wrong_flags_are_refused(benchmark):
    for flag, message in (
        ("--rows=10", "--rows is '10'; every store must have at least 32768 rows"),
        ("--commands=status,sing", "--commands has sing; allowed: status, verify, loader"),
    ):
        done, rows = benchmark(flag)
        assert (done.returncode, rows, done.stdout) == (2, None, "")
        assert done.stderr.startswith(f"error: {message}")
