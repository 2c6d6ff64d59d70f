"""The table of compiled steps, at a tiny size, and its message without a compiler for GPUs."""

import os
import pathlib
import subprocess
import sys

import pytest

from revelio_jax.planning.devices import can_compile

ROOT = pathlib.Path(__file__).parents[2]


def run(*flags):
    command = [sys.executable, "tests/benchmarks/compiled_step.py", "--sizes=128x1024x4x64", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile("h100"), reason="needs jax-cuda13-plugin, which compiles for an H100")
def test_only_atomic_products_add_floats_in_any_order():
    done = run("--products=sparse,atomic")
    assert done.returncode == 0, done.stderr
    header, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    sparse, atomic = (dict(zip(header, cells, strict=True)) for cells in lines)
    assert (sparse["products"], atomic["products"]) == ("sparse", "atomic")
    assert (sparse["scatters"], atomic["scatters"]) == ("0", "3")  # two matrices and the encoder's bias
    for row in (sparse, atomic):
        assert row["long loops"] == "1"  # over ties, without a trip if there are none
        assert 0 < int(row["kernels"]) <= int(row["launched"])


@pytest.mark.slow
@pytest.mark.skipif(not can_compile("v5e"), reason="needs libtpu, which compiles for a TPU")
def test_the_threshold_needs_no_sort_on_a_tpu():
    done = run("--topology=v5e:1x1")
    assert done.returncode == 0, done.stderr
    header, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    dense, threshold = (dict(zip(header, cells, strict=True)) for cells in lines)
    assert (dense["products"], threshold["products"]) == ("dense", "threshold")
    assert (dense["sorts"], threshold["sorts"]) == ("3", "0")
    assert 0 < float(threshold["ms"]) < float(dense["ms"])


@pytest.mark.slow
@pytest.mark.skipif(can_compile("h100"), reason="jax-cuda13-plugin is installed")
def test_without_a_compiler_one_line_names_the_packages():
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: compiling for h100 needs the package jax-cuda13-plugin\n"


@pytest.mark.slow
def test_an_unknown_form_is_refused():
    done = run("--products=dense,spare")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--products has 'spare'; it must be one of dense, sparse, atomic, kernels" in done.stderr
