"""The plan command: the training step compiled for TPUs and GPUs without them, and input that it refuses."""

import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import pytest

from revelio_jax import cli, plan
from revelio_jax.config import Config, ExtractConfig, ModelConfig, SaeConfig, TrainConfig
from revelio_jax.errors import InputError
from revelio_jax.planning import devices, meshes, model, widths, work
from revelio_jax.planning.compiled_step import compile_step
from revelio_jax.sae import sharding
from revelio_jax.training.step import make_train_step
from tests.helpers import ROOT
from tests.helpers.configs import changed

MESHES = {"v5e:2x2": "2x2", "v5e:4x4": "4x4", "v5p:2x2x2": "2x4", "v6e:4x4": "2x8"}
WIDTHS = {"flux_t5": 4096, "sdxl_clip": 2048}
CASES = [(config, topology) for config in WIDTHS for topology in MESHES]
ROW = re.compile(
    r" +(\d+)x(\d+) +(~?[\d.]+) +(yes|no) +([\d.]+) ms"
    r"(?: +(-|[\d.]+ ms) +(-|~?[\d.]+ ms) +([\d.]+) ms +(\w+) +(~?[\d,]+) +(~?[\d.]+)(?: +(~?[\d.,]+))?)?"
)

gpu = pytest.mark.skipif(
    not devices.can_compile("h100"), reason="the CUDA plugin is not installed: pip install '.[plan-cuda13]'"
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
    return float(re.sub("[~,]| ms", "", text))


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
    ((data, feature, memory, fits, modeled, xla, dead, roof, _, rate, hours, cost),) = rows(report.stdout)
    data, feature = int(data), int(feature)
    assert f"{data}x{feature}" == MESHES[topology]
    assert fits == "yes"
    matrices_gib = 2 * 4 * 16 * d * d / feature / 2**30
    assert 3 * matrices_gib < number(memory)  # parameters and two moments
    assert number(roof) < number(modeled)
    assert number(roof) < number(xla) == number(dead)  # without AuxK there is one branch
    # hours, rows/s and ms per step are the same quantity
    assert number(rate) == pytest.approx(4096 / (number(xla) / 1e3), rel=0.02)
    assert number(hours) == pytest.approx(97_656 * number(xla) / 3.6e6, abs=0.006)
    assert cost is None
    # Reconstructions of the rows of a chip are summed over the latents, gradients over the rows.
    summed = dict(re.findall(r"all-reduce over (\d+) chips, ([\d,.]+) MB", report.stdout))
    mb = 4096 // data * d * 4 + (matrices_gib * 2**30 if data == feature else 0)
    assert number(summed[str(feature)]) == pytest.approx(mb / 1e6, rel=0.02)


@tpu
def test_a_store_gives_width_and_rows_and_the_smallest_slice_is_found(base, config_file, tmp_path):
    report = run(config_file(tmp_path / "c.py", base), "--topology", "v5e:2x2", "--mesh", "1x4")
    assert report.returncode == 0, report.stderr
    epochs = base.train.steps * base.train.batch_size / 4096
    assert f"clip.layer.1: width 16, 48 latents, k 3; 600 steps of 64 rows are 38,400 rows, {epochs:.1f}" in (
        report.stdout
    )
    ((*_, xla, dead, _, _, _, _, _),) = rows(report.stdout)
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
    ((data, feature, memory, fits, _, xla, *_),) = rows(report.stdout)
    assert (data, feature, fits, xla) == ("1", "1", "no", None)
    assert number(memory) > 2 * 3 * 4 * 16 * 8192**2 / 2**30


def report_by_model(capsys, monkeypatch, topology, *overrides, **options):
    """Without a compiler for accelerators, ``plan`` prints the model."""
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    argv = ["plan", f"--config={ROOT}/configs/flux_t5.py", *(f"--config.{field}" for field in overrides)]
    plan.plan(cli.parse(argv, "")[0], topology, **{"meshes": (), "width": 0, "smallest": True} | options)
    return capsys.readouterr().out


@pytest.mark.parametrize(("topology", "extra"), [("h100:16", "plan-cuda13"), ("v5e:4x4", "plan")])
def test_without_a_compiler_all_meshes_are_ranked_by_the_model(capsys, monkeypatch, topology, extra):
    output = report_by_model(capsys, monkeypatch, topology)
    assert f"is not installed (pip install '.[{extra}]'): memory and time are by the model" in output
    found = rows(output)
    assert sorted((int(data), int(feature)) for data, feature, *_ in found) == [(2**i, 2 ** (4 - i)) for i in range(5)]
    times = [number(row[4]) for row in found]
    assert times == sorted(times)
    for _, _, memory, fits, _, xla, dead, _, _, rate, hours, cost in found:
        assert (fits, xla, cost) == ("yes", "-", None)
        assert all(text.startswith("~") for text in (memory, dead, rate, hours))
    assert "memory (model)" in output
    assert re.search(r"smallest that fits: \S+:1\S*, mesh 1x1, [\d.]+ GiB/chip by the model", output)


def test_a_price_adds_the_cost_of_all_chips(capsys, monkeypatch):
    output = report_by_model(capsys, monkeypatch, "h100:8", "train.steps=1000000", meshes=("2x4",), price=2.5)
    ((*_, modeled, _, _, _, _, _, hours, cost),) = rows(output)
    assert number(hours) == pytest.approx(1e6 * number(modeled) / 3.6e6, rel=0.01)
    assert number(cost) == pytest.approx(8 * 2.5 * number(hours), rel=0.01)
    smallest = re.search(r"smallest that fits: h100:1, .*, ([\d.]+) h, cost ([\d.,]+)\n", output)
    assert number(smallest[2]) == pytest.approx(2.5 * number(smallest[1]), rel=0.01)


def test_a_run_that_fits_no_slice(capsys, monkeypatch):
    output = report_by_model(capsys, monkeypatch, "v5e:4x4", "sae.latents=268435456")
    assert {row[3] for row in rows(output)} == {"no"}
    assert "best" not in output
    assert "smallest that fits: none of v5e, up to 16x16" in output


@gpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["h100:1", "h200:8", "b200:16"])
def test_a_plan_for_gpus_has_memory_and_collectives_of_xla_and_times_of_the_model(
    base, config_file, tmp_path, topology
):
    config = dataclasses.replace(
        base, sae=SaeConfig(k=8, latents=4096, k_aux=16), train=TrainConfig(steps=100, batch_size=1024)
    )
    count = int(topology.partition(":")[2])
    report = run(
        config_file(tmp_path / "c.py", config),
        f"--topology={topology}",
        f"--mesh=1x{count}",
        "--width=256",
        "--price=1",
    )
    assert report.returncode == 0, report.stderr
    assert "memory (XLA): arguments 0." in report.stdout
    ((_, _, memory, fits, _, xla, dead, _, _, rate, hours, cost),) = rows(report.stdout)
    assert (fits, xla) == ("yes", "-")
    assert not memory.startswith("~")
    assert all(text.startswith("~") for text in (dead, rate, hours, cost))
    assert (f"over {count} chips" in report.stdout) == (count > 1)


@gpu
def test_the_memory_of_a_step_on_a_gpu_is_near_the_models():
    planned = work.StepWork(
        Config(sae=SaeConfig(k=32, k_aux=0, products="dense"), train=TrainConfig(batch_size=2048)),
        "a",
        768,
        12288,
        None,
    )
    plans = meshes.rank(planned, "h100", [(1, 1), (1, 8), (8, 1)])
    for of_mesh in plans:
        topology = f"h100:{of_mesh.mesh[0] * of_mesh.mesh[1]}"
        (compiled,) = meshes.compile_plans(planned, topology, [of_mesh])
        assert compiled.compiled.memory["arguments"] == pytest.approx(of_mesh.estimate.memory["arguments"], rel=0.01)
        assert compiled.bytes == pytest.approx(of_mesh.estimate.bytes, rel=0.35), of_mesh.mesh


def test_only_the_outer_branches_of_aux_k_are_compiled():
    planned = work.StepWork(Config(sae=SaeConfig(k=4, k_aux=8), train=TrainConfig(batch_size=16)), "a", 8, 128, None)
    mesh = sharding.make_mesh(1, 1, 16, 128, jax.devices()[:1])

    def branches(text):
        found = re.findall(r"branch_computations=\{([^}]*)\}[^\n]*aux_k/cond\"", text)
        return [names.count(",") + 1 for names in found]

    assert branches(compile_step(planned, mesh).as_text()) == [2]
    state = model.abstract_state(128, 8, planned.config.sae, planned.config.train, mesh)
    x_BD = jax.ShapeDtypeStruct((16, 8), "float32")
    step = make_train_step(planned.config.sae, planned.config.train, mesh)
    assert branches(step.lower(state, x_BD).compile().as_text()) == [7]  # a step that runs has all


def test_the_three_fastest_meshes_by_the_model_are_compiled(monkeypatch):
    planned = work.StepWork(Config(train=TrainConfig(batch_size=4096)), "a", 1024, 16384, None)
    refused = []

    def compile_mesh(planned, mesh, chip):
        if mesh in refused:
            return meshes.Compiled({"refused": 2 * chip.hbm})
        seconds = {(1, 16): 3.0, (2, 8): 1.0, (4, 4): 2.0}[mesh]
        return meshes.Compiled({"temporaries": chip.hbm / 2}, seconds, seconds)

    monkeypatch.setattr(meshes, "compile_mesh", compile_mesh)
    monkeypatch.setattr(meshes, "place_mesh", lambda planned, topology, shape: shape)
    monkeypatch.setattr(meshes, "can_compile", lambda kind: True)
    monkeypatch.setattr(meshes, "topology_devices", lambda topology: ())
    possible = meshes.possible_meshes(planned, 16)
    plans = meshes.plan_slice(planned, "v5e:4x4", possible, every=False)
    assert [of_mesh.mesh for of_mesh in plans] == [(2, 8), (4, 4), (1, 16), (8, 2), (16, 1)]  # by XLA, then the model
    assert [of_mesh.compiled is None for of_mesh in plans] == [False, False, False, True, True]
    refused.append((2, 8))
    plans = meshes.plan_slice(planned, "v5e:4x4", possible, every=False)
    assert [of_mesh.mesh for of_mesh in plans[:3]] == [(4, 4), (1, 16), (2, 8)]
    assert [of_mesh.fits for of_mesh in plans[:3]] == [True, True, False]


@pytest.mark.parametrize("flags", [(), ("4x4",)])
def test_advice_does_not_name_a_mesh_that_xla_found_slower(capsys, monkeypatch, flags):
    def compile_mesh(planned, mesh, chip):
        seconds = 1.0 if mesh == (4, 4) else 2.0
        return meshes.Compiled({"temporaries": chip.hbm / 2}, seconds, seconds)

    monkeypatch.setattr(meshes, "compile_mesh", compile_mesh)
    monkeypatch.setattr(meshes, "place_mesh", lambda planned, topology, shape: shape)
    monkeypatch.setattr(meshes, "topology_devices", lambda topology: ())
    for module in (meshes, plan):
        monkeypatch.setattr(module, "can_compile", lambda kind: True)
    argv = ["plan", f"--config={ROOT}/configs/flux_t5.py"]
    plan.plan(cli.parse(argv, "")[0], "v5e:4x4", flags, 0, False)
    output = capsys.readouterr().out
    assert "best: 4x4" in output
    # The model prefers 1x16, which XLA has timed unless --mesh left it out.
    assert ("advice: --mesh 1x16" in output) == bool(flags)


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ((), {"price": -1.0}, r"--price is -1.0; it must be at least 0"),
        ((), {"price": float("nan")}, r"--price is nan; it must be at least 0"),
        ((), {"topology": "h100:3"}, r"--topology is 'h100:3'; allowed: h100:1, h100:2, h100:4, "),
        (
            ("train.batch_size=6",),
            {"topology": "v5e:2x2", "meshes": ("4x1",)},
            r"config.train.batch_size is 6; it must be a multiple of the 4 ",
        ),
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


@gpu
def test_a_topology_that_xla_cannot_describe_is_one_line(monkeypatch):
    monkeypatch.setattr(devices, "TARGET", "nonsense {{}} {} {} {} {} {} {} {}")
    devices.topology_devices.cache_clear()
    with pytest.raises(InputError, match=r"^--topology h100:2: XLA cannot describe it: "):
        devices.topology_devices("h100:2")
    devices.topology_devices.cache_clear()


def test_the_width_of_a_hook_point_is_looked_up(tmp_path):
    assert widths.known_width("extract/miniature/sd", "sd", "clip.layer.2") == 128
    assert widths.known_width("stabilityai/sdxl-turbo", "sdxl", "clip_g.layer.28") == 1280
    assert widths.known_width("black-forest-labs/FLUX.1-dev", "flux", "flux.double.3.image") is None
    assert widths.known_width("", "sd", "clip.layer.2") is None
    (tmp_path / "text_encoder_2").mkdir()
    (tmp_path / "text_encoder_2" / "config.json").write_text(json.dumps({"d_model": 24, "d_ff": 64}))
    assert widths.known_width(str(tmp_path), "flux", "t5.block.1") == 24


def test_the_default_meshes_divide_batch_and_latents():
    planned = work.StepWork(Config(), "a", 8, 48, None)
    assert meshes.possible_meshes(planned, 8) == [(1, 8), (2, 4), (4, 2), (8, 1)]
    odd = dataclasses.replace(planned, latents=6)
    assert meshes.possible_meshes(odd, 8) == [(4, 2), (8, 1)]
    assert meshes.possible_meshes(planned, 3) == []  # 4096 rows


def test_a_hook_point_that_the_store_does_not_have_is_refused(base):
    config = changed(base, site="clip.layer.7")
    with pytest.raises(InputError, match=r"config\.data\.site is 'clip\.layer\.7'; store .* has clip\.layer\.1"):
        work.describe_work(config, 0)
    away = Config(
        model=ModelConfig(id="extract/miniature/sd"),
        extract=ExtractConfig(store="nowhere/s", sites=("clip.layer.2",)),
    )
    assert work.describe_work(away, 0).d == 128
