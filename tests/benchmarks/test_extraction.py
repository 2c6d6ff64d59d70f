"""The benchmark of extraction writes the rows that its docstring describes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "tests/benchmarks/extraction.py"]


@pytest.mark.slow
def test_every_mode_has_a_row(tmp_path):
    out = tmp_path / "rows.json"
    small = ["--prompts", "16", "--images", "4", "--batch", "4", "--rounds", "1", "--pipeline-prompts", "1"]
    done = subprocess.run(
        [*COMMAND, "--json", out, *small],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert [row["mode"] for row in rows] == ["text", "pipeline", "noised", "early", "early", "early"]
    assert done.stdout.count("ratio") == len(rows)
    for row in rows:
        assert set(row) == {"mode", "site", "bare_s", "extract_s", "ratio"}
        first, second = row["bare_s"], row["extract_s"]
        assert row["ratio"] == pytest.approx(second / first if row["mode"] == "early" else first / second)
