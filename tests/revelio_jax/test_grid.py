"""A grid: its members are what each would be, trained on its own."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from revelio_jax import checkpoint, grid, metrics, sharding
from revelio_jax import config as configs
from revelio_jax.errors import InputError
from revelio_jax.evaluate import evaluate
from revelio_jax.export import export
from revelio_jax.store import SitePlan, StorePlan, StoreWriter
from revelio_jax.train import train

SITES = ("clip.layer.1", "clip.layer.2", "clip.layer.3")
STEPS = 30


@pytest.fixture(scope="module")
def sites(planted, tmp_path_factory) -> str:
    """A store of three sites: two of width 16, of which the second has other rows, and one of width 8."""
    location = str(tmp_path_factory.mktemp("sites") / "store")
    rows = dict(zip(SITES, (planted, planted[::-1] * 2 - 3, planted[:, :8]), strict=True))
    plans = tuple(SitePlan(name, x.shape[1], (len(x),)) for name, x in rows.items())
    writer = StoreWriter(
        location, StorePlan(plans, "float32", 32, 256, 256, {}), [{"id": i} for i in range(256)]
    )
    row = np.arange(len(planted), dtype=np.int32)
    index = {"sample": row // 16, "position": row % 16, "timestep": 0 * row}
    writer.write_shard(0, {name: {"activations": x, **index} for name, x in rows.items()})
    writer.finish()
    return location


@pytest.fixture(scope="module")
def config(base, sites, with_train):
    """Of a short run in which latents die; ``train.run`` is empty."""
    config = with_train(base, steps=STEPS, checkpoint_every=10, log_every=5, site=SITES[0])
    return dataclasses.replace(
        config,
        extract=dataclasses.replace(config.extract, store=sites),
        sae=dataclasses.replace(config.sae, k_aux=24, dead_after_rows=150),
    )


def newest_state(config, data=1, feature=1):
    """The newest state of a run as numpy."""
    run, d = pathlib.Path(config.train.run), 16
    latents = config.sae.latents or d * config.sae.expansion
    mesh = sharding.make_mesh(data, feature, config.train.batch_size, latents)
    step = checkpoint.newest(run)
    assert step == config.train.steps
    return jax.device_get(checkpoint.restore(run, step, latents, d, config.sae, config.train, mesh))


def lines(config):
    path = pathlib.Path(config.train.run) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_as_if_alone(member, folder):
    """A member's state and metrics are those of a run of its own; returns which lines have dead latents."""
    alone = dataclasses.replace(member, train=dataclasses.replace(member.train, run=str(folder)))
    train(alone)
    state, expected = newest_state(member), newest_state(alone)
    for name, value in expected.params.items():
        np.testing.assert_allclose(state.params[name], value, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(state.rows_since_fired_F, expected.rows_since_fired_F)
    np.testing.assert_array_equal(state.mean_D, expected.mean_D)
    found, wanted = lines(member), lines(alone)
    assert [line["step"] for line in found] == list(range(5, STEPS + 1, 5))
    for name in set(metrics.FIELDS) - {"rows_per_s", "step_s", "data_wait_s", "rss_gib"}:
        np.testing.assert_allclose(
            [line[name] for line in found], [line[name] for line in wanted], rtol=1e-3, err_msg=name
        )
    return [line["dead_fraction"] > 0 for line in wanted]


@pytest.mark.parametrize(
    ("form", "given"),
    [
        ("map", ["sae.k=2,3", "train.learning_rate=1e-2,3e-3"]),
        ("vmap", ["sae.k=2,3", "train.learning_rate=1e-2,3e-3"]),
        ("vmap", [f"train.site={SITES[0]},{SITES[1]}", "sae.expansion=2,3", "train.seed=0,1"]),
    ],
    ids=["map", "vmap", "sites, sizes, seeds"],
)
def test_members_are_as_if_trained_alone(config, with_train, tmp_path, form, given):
    config = with_train(config, run=str(tmp_path / "grid"))
    grid.train(config, given, form)
    members = grid.configs(config, given)
    assert len({member.train.run for member in members}) == len(members) >= 4
    any_dead = [assert_as_if_alone(member, tmp_path / str(i)) for i, member in enumerate(members)]
    assert any(
        any(step) and not all(step) for step in zip(*any_dead, strict=True)
    )  # in a step some have dead latents, others none
