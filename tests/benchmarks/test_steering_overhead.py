"""The benchmark of steering overhead writes the rows that its docstring describes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(tmp_path, *flags):
    command = [
        sys.executable,
        "tests/benchmarks/steering_overhead.py",
        "--json",
        tmp_path / "rows.json",
        *flags,
    ]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--denoiser",)])
def test_a_row_has_the_documented_fields(tmp_path, flags):
    done = run(tmp_path, "--families", "mini_sd,mini_flux", "--pairs", "2", "--steps", "1", *flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["family"] for row in rows] == ["mini_sd", "mini_flux"]
    for row in rows:
        assert set(row) == {"family", "plain_s", "steered_s", "ratio"}
        assert min(row["plain_s"], row["steered_s"], row["ratio"]) > 0


@pytest.mark.slow
def test_an_unknown_family_is_refused(tmp_path):
    done = run(tmp_path, "--families", "sd99")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "error: --families has 'sd99'; it must be one of sd14, mini_sd, mini_flux"
    )
    assert not list(tmp_path.iterdir())
