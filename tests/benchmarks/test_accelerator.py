"""The benchmark of accelerators writes the rows that its docstring describes. Here it runs on a CPU, at a tiny size."""

import json
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = "tests/benchmarks/accelerator.py"
SIZE = [32, 128, 3, 64]
# Rows that a CPU cannot run
SKIPPED = {
    ("step", "kernels, bfloat16, no AuxK"),
    ("top-k", "threshold kernel"),
    ("weight gradient", "segment_sum kernel"),
    ("decode", "decode_error kernel"),
    ("optimizer", "optimizer_rows kernel"),
    ("kernels", "segment_sum"),
    ("kernels", "optimizer_rows"),
    ("kernels", "decode_error"),
    ("kernels", "threshold"),
}


@pytest.fixture
def benchmark(tmp_path, quick_device):
    """``benchmark(*flags)`` runs the benchmark on one device and returns the process and the rows of its file."""

    def run(*flags, device=quick_device):
        out = tmp_path / "rows.jsonl"
        command = [sys.executable, SCRIPT, "--json", out, "--small", "--sizes", "x".join(map(str, SIZE)), *flags]
        environment = device | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    return run


def check(done, rows):
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == rows
    for row in rows:
        assert row["size"] == SIZE
        assert row["device"] == "cpu"
        assert "error" not in row, row


@pytest.mark.slow
def test_steps_repeat_their_bits_and_have_a_floor(benchmark):
    done, rows = benchmark("--parts=step")
    check(done, rows)
    steps = [row for row in rows if row["part"] == "step" and "skipped" not in row]
    assert [row["name"] for row in steps] == [
        "sparse, bfloat16, no AuxK",
        "sparse, bfloat16, no AuxK, 8 steps at once",
        "sparse, bfloat16, AuxK, 5% dead",
    ]
    assert {(row["part"], row["name"]) for row in rows if "skipped" in row} == {
        pair for pair in SKIPPED if pair[0] == "step"
    }
    for row in steps:
        assert (row["bit_same"], row["resumed_bit_same"]) == (True, True)
        assert row["rows_per_s"] == pytest.approx(1000 * SIZE[3] / row["ms"], rel=0.01)
        assert row["ratio"] == pytest.approx(row["ms"] / row["floor_ms"], rel=0.05)
    assert [row["dead_fraction"] for row in steps] == [0, 0, pytest.approx(0.05, abs=1 / 128)]


@pytest.mark.slow
def test_pieces_agree_with_their_plain_forms(benchmark):
    done, rows = benchmark("--parts=pieces")
    check(done, rows)
    measured = [row for row in rows if "skipped" not in row]
    skipped = {(row["part"], row["name"]) for row in rows if "skipped" in row}
    # Older releases of JAX have no unstable top-k.
    assert skipped - {("top-k", "lax.top_k, is_stable=False")} == {pair for pair in SKIPPED if pair[0] != "step"}
    for row in measured:
        assert row["ms"] > 0
        assert row.get("bit_same", True)
        assert row["part"] != "top-k" or row["values_equal"]
        assert row["part"] != "weight gradient" or row["difference"] < 2**-7  # codes are rounded to bfloat16


@pytest.mark.slow
def test_rows_of_the_input_path(benchmark, one_device):
    done, rows = benchmark("--parts=input", device=one_device)  # rates that round to 0 would fail
    check(done, rows)
    assert [row["name"] for row in rows[:3]] == [
        "gather of resident rows, bfloat16",
        "host to device, bfloat16",
        "host to device, float32",
    ]
    assert len(rows) == 10
    assert all(row["rows_per_s"] > 0 and row["gb_s"] > 0 for row in rows)


@pytest.mark.slow
def test_torch_has_rows_and_says_what_is_not_installed(benchmark):
    pytest.importorskip("torch")
    done, rows = benchmark("--parts=peers")
    check(done, rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name["torch dense, step"]["rows_per_s"] > 0
    assert by_name["torch.topk, float32"]["ms"] > 0
    assert all(row["ms"] or row["skipped"] for row in rows)


def test_rows_without_time_say_so(benchmark):
    start = time.monotonic()
    done, rows = benchmark("--minutes=0.0001")
    assert done.returncode == 0
    assert time.monotonic() - start < 30
    assert [(row["part"], row["name"], row["skipped"]) for row in rows] == [
        (part, "(rest)", "out of time") for part in ("step", "peers", "pieces", "input")
    ]


def test_a_part_that_hangs_is_stopped_with_its_children(benchmark, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho started >&2\nsleep 100 &\nsleep 100\n")
    python.chmod(0o755)
    start = time.monotonic()
    done, rows = benchmark("--parts=peers", "--minutes=0.02", f"--python-of-peers={python}")
    assert done.returncode == 0
    assert time.monotonic() - start < 30  # a child would hold the pipe open
    assert [row["skipped"] for row in rows] == ["stopped after 1 s: out of time"]


def test_a_part_that_fails_has_the_last_line_of_its_errors(benchmark, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho one >&2\necho two >&2\nexit 3\n")
    python.chmod(0o755)
    done, rows = benchmark("--parts=peers", f"--python-of-peers={python}")
    assert done.returncode == 0
    assert [(row["name"], row["error"]) for row in rows] == [("(rest)", "two")]


def test_table(tmp_path):
    rows = tmp_path / "rows.jsonl"
    shared = {"size": [4096, 65536, 32, 8192], "device": "NVIDIA H100", "jax": "1.2.3", "date": "2026-01-02"}
    lines = [
        {"part": "step", "name": "dense", "ms": 1.5, "bit_same": True} | shared,
        {"part": "step", "name": "kernels", "ms": None, "skipped": "out of time"} | shared,
        {"part": "input", "name": "copy", "ms": 2.5} | shared,
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run([sys.executable, SCRIPT, "--table", rows], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "## step",
        "",
        "device NVIDIA H100, jax 1.2.3, date 2026-01-02",
        "",
        "| size | name | ms | bit_same | skipped |",
        "|---|---|---:|---:|---:|",
        "| 4096 x 65536 x 32 x 8192 | dense | 1.5 | True |  |",
        "| 4096 x 65536 x 32 x 8192 | kernels |  |  | out of time |",
        "",
        "## input",
        "",
        "device NVIDIA H100, jax 1.2.3, date 2026-01-02",
        "",
        "| size | name | ms |",
        "|---|---|---:|",
        "| 4096 x 65536 x 32 x 8192 | copy | 2.5 |",
    ]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sizes=16x100x3", "--sizes has '16x100x3'; it must be d x latents x k x batch"),
        ("--sizes=16x100x101x64", "k must be at most the number of latents"),
        ("--parts=steps", "--parts has 'steps'; it must be one of step, peers, pieces, input"),
        ("--minutes=0", "--minutes is 0.0; it must be above 0"),
        ("--table=missing", "--table is 'missing'; it must be a file that --json wrote"),
    ],
)
def test_a_wrong_flag_is_refused(benchmark, flag, message):
    done, rows = benchmark(flag)
    assert (done.returncode, rows, done.stdout) == (2, [], "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
