"""Grids: members equal runs that are trained alone."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from revelio_jax import cli, grid
from revelio_jax.errors import InputError
from revelio_jax.evaluate import evaluate
from revelio_jax.export import export
from revelio_jax.sae import sharding
from revelio_jax.store import SitePlan, StorePlan, StoreWriter
from revelio_jax.train import train
from revelio_jax.training import checkpoints, metrics
from tests.helpers.configs import changed

SITES = ("clip.layer.1", "clip.layer.2", "clip.layer.3")
STEPS = 30
K_AND_RATE = ["sae.k=2,3", "train.learning_rate=1e-2,3e-3"]
TIMINGS = {"rows_per_s", "step_s", "data_wait_s", "rss_gib"}


@pytest.fixture(scope="module")
def sites(planted, tmp_path_factory) -> str:
    """A store with three hook points: two of width 16 with different rows, and one of width 8."""
    location = str(tmp_path_factory.mktemp("sites") / "store")
    rows = dict(zip(SITES, (planted, planted[::-1] * 2 - 3, planted[:, :8]), strict=True))
    plans = tuple(SitePlan(name, x.shape[1], (len(x),)) for name, x in rows.items())
    writer = StoreWriter(location, StorePlan(plans, "float32", 32, 256, 256, {}), [{"id": i} for i in range(256)])
    row = np.arange(len(planted), dtype=np.int32)
    index = {"sample": row // 16, "position": row % 16, "timestep": 0 * row}
    writer.write_shard(0, {name: {"activations": x, **index} for name, x in rows.items()})
    writer.finish()
    return location


@pytest.fixture(scope="module")
def config(base, sites, with_train):
    """The config of a short run in which latents die; ``run`` is not set."""
    config = with_train(base, steps=STEPS, checkpoint_every=10, every=5, decay_share=0.0, site=SITES[0])
    return dataclasses.replace(
        config,
        extract=dataclasses.replace(config.extract, store=sites),
        sae=dataclasses.replace(config.sae, k_aux=24, dead_after_rows=150, init="unit"),  # random rows: some die
    )


def newest_state(config, data=1, feature=1):
    """Return the newest state of a run as numpy arrays."""
    run, d = pathlib.Path(config.run), 16
    latents = config.sae.latents or d * config.sae.expansion
    mesh = sharding.make_mesh(data, feature, config.train.batch_size, latents)
    step = checkpoints.newest_step(run)
    assert step == config.train.steps
    return jax.device_get(checkpoints.restore(run, step, latents, d, config.sae, config.train, mesh))


def lines(config):
    path = pathlib.Path(config.run) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained_grid(config, with_train, tmp_path_factory):
    """The config of a finished grid, and the configs of its members."""
    config = with_train(config, run=str(tmp_path_factory.mktemp("grids") / "grid"))
    grid.train(config, K_AND_RATE)
    return config, grid.configs(config, K_AND_RATE)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function that trains a member as a single run and returns its config."""

    def run(member):
        folder = tmp_path_factory.mktemp("alone")
        config = changed(member, run=str(folder))
        train(config)
        return config

    return run


def assert_equal_to_single_runs(members, alone):
    """Assert that states and metrics of members equal those of single runs, and that some have dead latents."""
    any_dead = []
    for member in members:
        expected = alone(member)
        assert_close(newest_state(member), newest_state(expected))
        member_log, single_log = lines(member), lines(expected)
        assert [line["step"] for line in member_log] == list(range(5, STEPS + 1, 5))
        for name in set(metrics.FIELDS) - TIMINGS:
            numbers = [[line[name] for line in log] for log in (member_log, single_log)]
            np.testing.assert_allclose(*numbers, rtol=1e-3, atol=1e-6, err_msg=name)
        any_dead.append([line["dead_fraction"] > 0 for line in single_log])
    # In some step, some members have dead latents and others have none.
    assert any(any(step) and not all(step) for step in zip(*any_dead, strict=True))


def assert_close(state, expected):
    for name, value in expected.params.items():
        np.testing.assert_allclose(state.params[name], value, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(state.rows_since_fired_F, expected.rows_since_fired_F)
    np.testing.assert_array_equal(state.mean_D, expected.mean_D)


@pytest.mark.slow
def test_members_one_after_another_equal_single_runs(trained_grid, alone):
    _, members = trained_grid
    names = [pathlib.Path(member.run).name for member in members]
    assert names == [f"k={k},learning_rate={rate}" for k in (2, 3) for rate in (0.01, 0.003)]
    assert_equal_to_single_runs(members, alone)


@pytest.mark.slow
def test_vectorized_members_equal_single_runs(config, with_train, alone, tmp_path):
    config = with_train(config, run=str(tmp_path / "grid"))
    grid.train(config, K_AND_RATE, "vmap")
    assert_equal_to_single_runs(grid.configs(config, K_AND_RATE), alone)


@pytest.mark.slow
def test_members_with_other_sites_sizes_and_seeds_equal_single_runs(config, with_train, alone, tmp_path):
    config = with_train(config, run=str(tmp_path / "grid"))
    axes = [f"data.site={SITES[0]},{SITES[1]}", "sae.expansion=2,3", "train.seed=0,1"]
    grid.train(config, axes, "vmap")
    members = grid.configs(config, axes)
    assert_equal_to_single_runs([members[i] for i in (0, 3, 5, 6)], alone)  # every value of every field, twice


@pytest.mark.slow
def test_a_grid_on_a_mesh_equals_one_device(trained_grid, with_train, tmp_path):
    config, members = trained_grid
    config = with_train(config, run=str(tmp_path / "grid"), data=2, feature=4)
    grid.train(config, K_AND_RATE, "vmap")
    for member, expected in zip(grid.configs(config, K_AND_RATE), members, strict=True):
        assert_close(newest_state(member), newest_state(expected))


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True], ids=["stopped", "killed while it saved"])
def test_a_resumed_grid_has_the_same_bits(trained_grid, with_train, tmp_path, ahead):
    config, members = trained_grid
    config = with_train(config, run=str(tmp_path / "grid"), steps=20)
    grid.train(config, K_AND_RATE)
    if ahead:  # some members have a checkpoint that others lack
        shutil.rmtree(pathlib.Path(str(grid.configs(config, K_AND_RATE)[1].run)) / "checkpoints/20")
    config = with_train(config, steps=STEPS, resume=True)
    grid.train(config, K_AND_RATE)
    for member, expected in zip(grid.configs(config, K_AND_RATE), members, strict=True):
        states = newest_state(member), newest_state(expected)
        jax.tree.map(np.testing.assert_array_equal, *states)
        logs = [[{k: v for k, v in line.items() if k not in TIMINGS} for line in lines(c)] for c in (member, expected)]
        assert logs[0] == logs[1]


@pytest.mark.slow
def test_sigterm_saves_every_member(config, with_train, config_file, tmp_path):
    config = with_train(config, run=str(tmp_path / "grid"), steps=10**6)
    path = config_file(tmp_path / "config.py", config)
    command = [sys.executable, "-m", "revelio_jax.grid", "--config", path, "--grid", "sae.k=2,3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = [pathlib.Path(str(member.run)) for member in grid.configs(config, ["sae.k=2,3"])]
    while process.poll() is None and not checkpoints.newest_step(*runs):
        time.sleep(0.05)
    process.terminate()
    output, errors = process.communicate()
    assert process.returncode == 143, errors
    step = int(output.split("step ")[-1].split()[0])
    assert (
        step == checkpoints.newest_step(*runs) == checkpoints.newest_step(runs[0]) == checkpoints.newest_step(runs[1])
    )


def test_every_command_accepts_the_config_of_a_member(trained_grid):
    _, members = trained_grid
    for member in members[1:3]:
        path = str(pathlib.Path(member.run) / "config.json")
        config, _ = cli.parse(["a.command", "--config", path], "doc")
        assert config == member
        assert evaluate(config)["step"] == STEPS
        assert json.loads((export(config) / "cfg.json").read_text())["k"] == member.sae.k


def test_resuming_a_finished_grid_changes_nothing(trained_grid, with_train, capsys):
    grid.train(with_train(trained_grid[0], resume=True), K_AND_RATE)
    assert f"all members have {STEPS} of {STEPS} steps" in capsys.readouterr().out


def test_a_member_saves_how_many_checkpoints_it_keeps(config, with_train):
    """Training a finished member alone then keeps both, also with ``keep`` of 1."""
    for keep, saved in ((1, 2), (5, 5)):
        members = grid.configs(with_train(config, run="runs/grid", keep=keep), ["sae.k=2,3"])
        assert [member.train.keep for member in members] == [saved, saved]


def test_a_nonfinite_loss_names_its_member(config, with_train, tmp_path):
    config = with_train(config, run=str(tmp_path / "grid"))
    with pytest.raises(SystemExit, match=r"loss is .*learning_rate=1e\+30/nonfinite\.json"):
        grid.train(config, ["train.learning_rate=1e-2,1e30"])


@pytest.mark.parametrize(
    ("axes", "match"),
    [
        ([], "--grid is missing"),
        (["sae.k"], "sae.k is ''; each value must be a whole number"),
        (["sae.k=2,,3"], "sae.k is ''; each"),
        (["sae.k=2,x"], "sae.k is 'x'; it must be a whole number"),
        (["sae.k=0"], "config.sae.k is 0; it must be at least 1"),
        (["sae.k=2", "sae.k=3"], "sae.k twice"),
        (["sae.k=2,2"], "two members for the folder"),
        (["sae.k=2,49"], "config.sae.k is 49; it must be at most 48"),
        (["sae.kk=2"], "a grid cannot vary 'sae.kk'; allowed: sae.k, "),
        (["train.steps=2,3"], "a grid cannot vary 'train.steps'; allowed"),
        (["sae.expansion=2", "sae.latents=48,32"], "--grid sae.expansion has no effect"),
        (
            [f"data.site={SITES[0]},{SITES[2]}"],
            "clip.layer.3 of .* has width 8, but clip.layer.1 of .* has width 16",
        ),
        (["data.site=clip.layer.9"], "config.data.site is 'clip.layer.9'; .* has clip.layer.1"),
    ],
    ids=str,
)
def test_a_wrong_grid_is_refused_before_anything_is_written(config, with_train, tmp_path, axes, match):
    with pytest.raises(InputError, match=match):
        grid.train(with_train(config, run=str(tmp_path / "grid")), axes)
    assert not list(tmp_path.iterdir())


def test_an_existing_grid_needs_resume_and_the_same_axes(trained_grid, with_train, tmp_path):
    config, _ = trained_grid
    with pytest.raises(InputError, match=r"pass --config\.train\.resume=yes"):
        grid.train(config, K_AND_RATE)
    other = with_train(config, resume=True, steps=40)
    with pytest.raises(InputError, match=r"no checkpoint of the same step; .*learning_rate=0\.02: none"):
        grid.train(other, ["sae.k=2", "train.learning_rate=1e-2,2e-2"])
