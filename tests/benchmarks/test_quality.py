"""The benchmark of quality writes the rows that its docstring describes and scores what is learned."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from revelio_jax.errors import InputError
from tests.benchmarks import quality_table

ROOT = pathlib.Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
FIELDS = {
    "data",
    "latents",
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
def benchmark(tmp_path, quick_device):
    """``benchmark(*flags)`` runs the benchmark on one device and returns the process and its rows."""

    def run(*flags):
        out = tmp_path / "rows.json"
        environment = quick_device | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "tests/benchmarks/quality.py", "--json", out, *flags]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done, json.loads(out.read_text()) if out.exists() else None

    return run


def check(done, rows, systems, steps):
    assert done.returncode == 0, done.stderr
    single, summary = done.stdout.split("\n\n")
    assert len(single.splitlines()) == 2 + len(rows)
    assert len(summary.splitlines()) == 2 + len(set(systems))
    assert [row["system"] for row in rows] == systems
    for row in rows:
        assert set(row) == FIELDS
        assert (row["data"], row["latents"], row["k"], row["rows"]) == ("zipf-512", 512, 8, 512 * steps)
        assert 0 < row["fvu"] < 1
        assert 0 <= row["dead_fraction"] < 1
        assert 0 <= row["matched"] <= 1


@pytest.mark.slow
def test_planted_directions_are_found(benchmark):
    done, rows = benchmark("--data=zipf-512", "--systems=revelio_jax", "--rates=1e-2", "--steps=400", "--seeds=5")
    check(done, rows, ["revelio_jax"], 400)
    random = np.random.default_rng(5)
    directions, guesses = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (random.normal(size=(256, 64)), random.normal(size=(512, 64)))
    )
    by_chance = (directions @ guesses.T).max(1)
    assert rows[0]["mmcs"] > by_chance.mean() + 0.2
    assert rows[0]["matched"] > 0.2 > (by_chance > 0.9).mean()


@pytest.mark.slow
def test_finished_rows_are_not_trained_again(benchmark):
    flags = "--data=zipf-512", "--systems=revelio_jax", "--steps=20", "--draw=2"
    done, rows = benchmark(*flags, "--rates=1e-3")
    check(done, rows, ["revelio_jax"] * 2, 20)
    seeds = [row["seed"] for row in rows]
    assert len(set(seeds)) == 2
    done, more = benchmark(*flags, "--rates=1e-3,2e-3")
    assert done.returncode == 0, done.stderr
    assert more[:2] == rows
    assert [(row["seed"], row["learning_rate"]) for row in more[2:]] == [(seed, 2e-3) for seed in seeds]


@pytest.mark.peers
@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed; run bash tests/benchmarks/peers.sh")
@pytest.mark.parametrize("system", ["sae-lens", "eai-sparsify", "dictionary-learning"])
def test_a_peer_has_a_row(benchmark, system):
    done, rows = benchmark("--data=zipf-512", f"--systems={system}", "--rates=1e-3", "--steps=20", "--draw=1")
    check(done, rows, [system], 20)


def row(system, seed, fvu, dead, matched):
    facts = {"data": "zipf-512", "latents": 512, "learning_rate": 1e-3, "k": 8, "rows": 1000, "mmcs": matched}
    return facts | {"system": system, "seed": seed, "fvu": fvu, "dead_fraction": dead, "matched": matched}


def test_the_summary_has_intervals_and_missed_targets():
    ours = [row("ours", 1, 0.10, 0.01, 0.8), row("ours", 2, 0.12, 0.03, 0.8), row("ours", 3, 0.14, 0.08, 0.8)]
    peer = [row("peer", 1, 0.11, 0.20, 0.7), row("peer", 2, 0.11, 0.20, 0.9), row("peer", 3, 0.11, 0.20, 0.8)]
    first, second = quality_table.summary([*ours, *peer], "ours").splitlines()[2:]
    half = 4.30265 * 0.02 / 3**0.5  # Student's t with 2 degrees of freedom
    assert f"| 3 | 0.12000 ± {half:.5f} | 4.0% " in first
    assert first.endswith("| 80.0% ± 0.0% | dead, FVU |")
    assert second.startswith("| zipf-512 | 0.001 | peer | 3 | 0.11000 ± 0.00000 ")
    better = [row("ours", 1, 0.10, 0.01, 0.8), row("peer", 1, 0.10, 0.0, 0.9)]
    assert quality_table.summary(better, "ours").splitlines()[2].endswith("| 1.0% | 80.0% | matched |")
    assert quality_table.summary(better[:1], "ours").endswith("| none |")


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"data": "zipf-512"}]', "[", "\x00"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(InputError, match="does not have rows of this benchmark"):
        quality_table.read(str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data=real", "one of uniform-512, uniform-4096"),
        (
            "--systems=torch",
            "one of revelio_jax, revelio_jax-bfloat16, revelio_jax-bfloat16-moments, sae-lens, eai-sparsify",
        ),
        ("--rates=fast", "numbers of at least"),
        ("--seeds=-1", "numbers of at least 0"),
        ("--draw=0", "at least 1"),
        ("--steps=3", "at least 20"),
        ("--stores=nowhere", "revelio extract --config mini_sd"),
    ],
)
def test_a_wrong_flag_is_refused(benchmark, flag, message):
    data = "mini_sd" if flag.startswith("--stores") else "zipf-512"
    done, rows = benchmark("--systems=revelio_jax", f"--data={data}", flag)
    assert (done.returncode, rows, done.stdout) == (2, None, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
