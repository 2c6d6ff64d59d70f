"""The benchmark of methods' times writes the rows that its docstring describes, on small images."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(tmp_path, *flags):
    command = [sys.executable, "tests/benchmarks/method_times.py", "--json", tmp_path / "rows.json", *flags]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


@pytest.mark.slow
def test_a_row_has_the_documented_fields(tmp_path):
    done = run(tmp_path, "--miniature", "--methods", "steer,sld preset=max", "--pairs", "1", "--steps", "1")
    assert done.returncode == 0, done.stderr
    steered, sld = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (steered["method"], steered["evaluations"], steered["gradients"]) == ("steer", 2, 0)
    assert sld["evaluations"] == 3
    assert min(sld["plain_s"], sld["method_s"], sld["ratio"]["median"]) > 0


@pytest.mark.slow
def test_an_unknown_method_is_refused(tmp_path):
    done = run(tmp_path, "--methods", "steer,sdl")
    assert done.returncode == 2
    assert "sdl" in done.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())
