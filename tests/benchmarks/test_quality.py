"""The benchmark of quality writes the rows that its docstring describes and scores what is learned."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
FIELDS = {
    "data",
    "system",
    "seed",
    "learning_rate",
    "k",
    "rows",
    "fvu",
    "dead_fraction",
    "mmcs",
    "matched",
}


@pytest.fixture
def benchmark(tmp_path, one_device):
    """``benchmark(*flags)`` runs the benchmark on one device and returns the process and its rows."""

    def run(*flags):
        out = tmp_path / "rows.json"
        environment = one_device | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "tests/benchmarks/quality.py", "--json", out, *flags]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done, json.loads(out.read_text()) if out.exists() else None

    return run


def check(done, rows, systems, steps):
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + len(rows)  # the table
    assert [row["system"] for row in rows] == systems
    for row in rows:
        assert set(row) == FIELDS
        assert (row["data"], row["k"], row["rows"]) == ("planted", 8, 512 * steps)
        assert 0 < row["fvu"] < 1
        assert 0 <= row["dead_fraction"] < 1
        assert 0 <= row["matched"] <= 1


@pytest.mark.slow
def test_planted_directions_are_found(benchmark):
    done, rows = benchmark("--data=planted", "--systems=revelio_jax", "--rates=1e-2", "--steps=400")
    check(done, rows, ["revelio_jax"], 400)
    random = np.random.default_rng(0)
    directions, guesses = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (random.normal(size=(256, 64)), random.normal(size=(512, 64)))
    )
    by_chance = (directions @ guesses.T).max(1)
    assert rows[0]["mmcs"] > by_chance.mean() + 0.25
    assert rows[0]["matched"] > 0.2 > (by_chance > 0.9).mean()


@pytest.mark.peers
@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed; run bash tests/benchmarks/peers.sh")
@pytest.mark.parametrize("system", ["sae-lens", "eai-sparsify", "dictionary-learning"])
def test_a_peer_has_a_row(benchmark, system):
    done, rows = benchmark("--data=planted", f"--systems={system}", "--rates=1e-3", "--steps=20")
    check(done, rows, [system], 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data=real", "one of planted, miniature"),
        ("--systems=torch", "one of revelio_jax, sae-lens"),
        ("--rates=fast", "numbers of at least"),
        ("--steps=3", "at least 20"),
        ("--store=nowhere", "revelio extract --config mini_sd"),
    ],
)
def test_a_wrong_flag_is_refused(benchmark, flag, message):
    done, rows = benchmark("--systems=revelio_jax", "--data=miniature", flag)
    assert (done.returncode, rows, done.stdout) == (2, None, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
