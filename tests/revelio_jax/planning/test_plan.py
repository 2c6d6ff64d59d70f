"""The plan command: the training step compiled for TPU slices without a TPU, and input that it refuses."""

import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from revelio_jax import cli, plan
from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.planning import chips, compiled_step, meshes, widths
from tests.helpers import ROOT
from tests.helpers.configs import changed

MESHES = {"v5e:2x2": "2x2", "v5e:4x4": "4x4", "v5p:2x2x2": "2x4"}
WIDTHS = {"flux_t5": 4096, "sdxl_clip": 2048}
CASES = [(config, topology) for config in WIDTHS for topology in MESHES]
ROW = re.compile(
    r" +(\d+)x(\d+) +([\d.]+) +(yes|no)"
    r"(?: +([\d.]+) ms +([\d.]+) ms +([\d.]+) ms +(\w+) +([\d,]+) +([\d.]+))?"
)

tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[plan]'"
)


def run(config, *arguments):
    command = [sys.executable, "-m", "revelio_jax.plan", "--config", str(config), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def rows(output):
    """The table's rows, as tuples of numbers and words."""
    return [match.groups() for line in output.splitlines() if (match := ROW.fullmatch(line))]


def number(text):
    return float(text.replace(",", ""))


@pytest.fixture(scope="module")
def reports():
    """Reports of every case. AuxK's branches take a minute to compile for TPU: it is off here."""

    def one(case):
        config, topology = case
        options = ("--topology", topology, "--mesh", MESHES[topology], "--nosmallest")
        return run(f"configs/{config}.py", *options, "--config.sae.k_aux=0")

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(CASES, pool.map(one, CASES), strict=True))


@tpu
@pytest.mark.parametrize(("config", "topology"), CASES)
def test_the_plan_of_a_published_experiment_has_consistent_numbers(reports, config, topology):
    report = reports[config, topology]
    assert report.returncode == 0, report.stderr
    d = WIDTHS[config]
    assert f"width {d}, {16 * d} latents, k 64" in report.stdout
    ((data, feature, memory, fits, xla, dead, roof, _, rate, hours),) = rows(report.stdout)
    data, feature = int(data), int(feature)
    assert f"{data}x{feature}" == MESHES[topology]
    assert fits == "yes"
    matrices_gib = 2 * 4 * 16 * d * d / feature / 2**30
    assert 3 * matrices_gib < number(memory)  # parameters and two moments
    assert number(roof) < number(xla) == number(dead)  # without AuxK there is one branch
    # hours, rows/s and ms per step are the same quantity
    assert number(rate) == pytest.approx(4096 / (number(xla) / 1e3), rel=0.02)
    assert number(hours) == pytest.approx(97_656 * number(xla) / 3.6e6, abs=0.06)
    # Only reconstructions of rows are summed over chips, not gradients of matrices.
    summed = re.findall(r"all-reduce over \d+ chips, ([\d,.]+) MB", report.stdout)
    assert summed
    assert sum(map(number, summed)) < matrices_gib * 2**30 / 1e6


@tpu
def test_a_store_gives_width_and_rows_and_the_smallest_slice_is_found(base, config_file, tmp_path):
    report = run(config_file(tmp_path / "c.py", base), "--topology", "v5e:2x2", "--mesh", "1x4")
    assert report.returncode == 0, report.stderr
    epochs = base.train.steps * base.train.batch_size / 4096
    assert f"clip.layer.1: width 16, 48 latents, k 3; 600 steps of 64 rows are 38,400 rows, {epochs:.1f}" in (
        report.stdout
    )
    ((*_, xla, dead, _, _, _, _),) = rows(report.stdout)
    assert number(dead) >= number(xla)
    assert "over 4 chips" in report.stdout  # the threshold of the sharded top-k, at the least
    assert "smallest that fits: v5e:1x1, mesh 1x1, " in report.stdout


@tpu
def test_a_step_that_does_not_fit_is_reported(config_file, tmp_path):
    report = run(
        "configs/flux_t5.py",
        *("--topology", "v5e:1x1", "--width", "8192", "--nosmallest", "--config.sae.k_aux=0"),
    )
    assert report.returncode == 0, report.stderr
    ((data, feature, memory, fits, xla, *_),) = rows(report.stdout)
    assert (data, feature, fits, xla) == ("1", "1", "no", None)
    assert number(memory) > 2 * 3 * 4 * 16 * 8192**2 / 2**30


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ((), {"topology": "v5p:2x2"}, r"--topology is 'v5p:2x2'; allowed: v5p:2x2x1, v5p:2x2x2, "),
        ((), {"meshes": ("3x3",)}, r"--mesh is '3x3'; it must be DATAxFEATURE with 16 chips \(v5e:4x4\)"),
        ((), {"meshes": ("4",)}, r"--mesh is '4'; it must be DATAxFEATURE"),
        ((), {"width": -1}, r"--width is -1; it must be at least 1"),
        ((), {"width": 3}, r"config.sae.k is 64; it must be at most 48, the number of latents"),
        (("model.id=a/b",), {}, r"the width of hook point 't5.block.22' of 'a/b' is unknown.* --width N"),
        (
            ("mesh.data=3",),
            {},
            r"config.mesh.data x config.mesh.feature is 3 x None; .* 16 chips of v5e:4x4",
        ),
        (
            ("train.batch_size=9", "sae.expansion=13"),
            {"width": 5},
            r"--topology v5e:4x4: no mesh of 16 chips divides both config.train.batch_size \(9\) and the 65",
        ),
    ],
)
def test_wrong_input(overrides, options, message):
    argv = ["plan", f"--config={ROOT}/configs/flux_t5.py", *(f"--config.{field}" for field in overrides)]
    options = {"topology": "v5e:4x4", "meshes": (), "width": 0, "smallest": True} | options
    with pytest.raises(InputError, match=message):
        plan.plan(cli.parse(argv, "")[0], **options)


@pytest.mark.slow
def test_wrong_input_on_the_command_line_is_one_line():
    report = run("configs/flux_t5.py", "--topology=v9:2x2")
    assert (report.returncode, report.stdout) == (2, "")
    assert re.fullmatch(r"error: --topology is 'v9:2x2'; allowed: v5e:1x1 2x2 .*; v5p:2x2x1 .*\n", report.stderr)


@tpu
def test_a_mesh_that_does_not_divide_the_batch():
    report = run("configs/flux_t5.py", "--topology=v5e:2x2", "--mesh=4x1", "--config.train.batch_size=6")
    assert (report.returncode, report.stdout) == (2, "")
    assert re.fullmatch(r"error: config.train.batch_size is 6; it must be a multiple of the 4 .*\n", report.stderr)


def test_a_missing_libtpu_is_refused_with_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    chips.topology_devices.cache_clear()
    with pytest.raises(InputError, match=r"not installed: pip install '\.\[plan\]'"):
        chips.topology_devices("v5e:2x2")


def test_the_width_of_a_hook_point_is_looked_up(tmp_path):
    assert widths.known_width("extract/miniature/sd", "sd", "clip.layer.2") == 128
    assert widths.known_width("stabilityai/sdxl-turbo", "sdxl", "clip_g.layer.28") == 1280
    assert widths.known_width("black-forest-labs/FLUX.1-dev", "flux", "flux.double.3.image") is None
    assert widths.known_width("", "sd", "clip.layer.2") is None
    (tmp_path / "text_encoder_2").mkdir()
    (tmp_path / "text_encoder_2" / "config.json").write_text(json.dumps({"d_model": 24, "d_ff": 64}))
    assert widths.known_width(str(tmp_path), "flux", "t5.block.1") == 24


def test_the_default_meshes_divide_batch_and_latents():
    work = plan.StepWork(Config(), "a", 8, 48, None)
    assert meshes.possible_meshes(work, 8) == [(1, 8), (2, 4), (4, 2), (8, 1)]
    odd = dataclasses.replace(work, latents=6)
    assert meshes.possible_meshes(odd, 8) == [(4, 2), (8, 1)]


def test_a_hook_point_that_the_store_does_not_have_is_refused(base):
    config = changed(base, site="clip.layer.7")
    with pytest.raises(InputError, match=r"config\.data\.site is 'clip\.layer\.7'; store .* has clip\.layer\.1"):
        compiled_step.describe_work(config, 0)
    away = Config(
        model=ModelConfig(id="extract/miniature/sd"),
        extract=ExtractConfig(store="nowhere/s", sites=("clip.layer.2",)),
    )
    assert compiled_step.describe_work(away, 0).d == 128
