"""The benchmark of the report writes the row that its docstring describes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "tests/benchmarks/report.py"]
FIELDS = ("kind", "latents", "samples", "seconds", "cpu_seconds", "files", "mb", "images_mb", "peak_gib")


@pytest.mark.slow
@pytest.mark.usefixtures("chromium")  # skips without Chromium
@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_row_has_the_documented_fields(tmp_path, kind):
    out = tmp_path / "row.json"
    done = subprocess.run(
        [*COMMAND, "--json", out, "--kind", kind, "--latents", "200", "--samples", "50"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())
    assert tuple(row) == (*FIELDS, "first_kb")
    assert (row["kind"], row["latents"]) == (kind, 200)
    assert (row["images_mb"] > 0) == (kind == "image")
    assert all(50 < kb < 1000 for kb in row["first_kb"].values())
