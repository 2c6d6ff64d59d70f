"""The benchmark of the train step writes the rows that its docstring describes."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
FIELDS = {"system", "d", "n", "k", "batch", "dead_fraction", "step_s", "floor_s", "ratio", "torch_floor_s"}


@pytest.fixture
def benchmark(tmp_path, quick_device):
    """``benchmark(*flags)`` runs the benchmark on one device and returns the process and its rows."""

    def run(*flags):
        out = tmp_path / "rows.json"
        command = [sys.executable, "tests/benchmarks/train_step.py", "--json", out, "--repeats", "2", *flags]
        environment = quick_device | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done, json.loads(out.read_text()) if out.exists() else None

    return run


def check(done, rows):
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + len(rows)  # the table
    for row in rows:
        assert set(row) == FIELDS
        assert (row["d"], row["n"], row["k"], row["batch"]) == (16, 100, 3, 64)
        assert row["step_s"] > 0
        assert row["ratio"] == pytest.approx(row["step_s"] / row["floor_s"])


@pytest.mark.slow
def test_this_project_has_a_row_per_dead_fraction(benchmark):
    done, rows = benchmark("--systems=revelio_jax", "--sizes=16x100x3x64", "--dead=0,0.2")
    check(done, rows)
    assert [(row["system"], row["dead_fraction"]) for row in rows] == [
        ("revelio_jax", 0),
        ("revelio_jax", 0.2),
    ]


@pytest.mark.peers
@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed; run bash tests/benchmarks/peers.sh")
@pytest.mark.parametrize("system", ["sae-lens", "eai-sparsify", "dictionary-learning"])
def test_a_peer_has_a_row(benchmark, system):
    done, rows = benchmark(f"--systems={system}", "--sizes=16x100x3x64", "--dead-peers=0.2")
    check(done, rows)
    assert [(row["system"], row["dead_fraction"]) for row in rows] == [(system, 0.2)]
    assert rows[0]["torch_floor_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sizes=16x100x3", "d x latents x k x batch"),
        ("--sizes=16x100x101x64", "k must be at most the number of latents"),
        ("--systems=torch", "one of revelio_jax, sae-lens"),
        ("--dead=1", "from 0 to below 1"),
    ],
)
def test_a_wrong_flag_is_refused(benchmark, flag, message):
    done, rows = benchmark("--systems=revelio_jax", flag)
    assert (done.returncode, rows, done.stdout) == (2, None, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
