"""Training and export that are killed at named places give the uninterrupted result when they run again."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from revelio_jax.export import export
from revelio_jax.sae import sharding
from revelio_jax.train import train
from revelio_jax.training import checkpoints
from tests.helpers.kills import Place

TRAINING = [
    Place("revelio_jax.train:center"),  # start-up
    Place("rename", 1, "/config.json"),
    Place("revelio_jax.training.metrics:Log.add", 30),  # computing
    Place("write", 6, "/checkpoints/"),  # writing
    Place("write", 2, "/metrics.jsonl"),
    Place("rename", 6, "/checkpoints/"),  # renaming
    Place("unlink", 6, "/checkpoints/"),  # removing an old checkpoint
]
EXPORT = [
    Place("revelio_jax.export:restore_run"),  # start-up
    Place("revelio_jax.export:fold"),  # computing
    Place("write", 1, "/export.part/cfg.json"),  # writing
    Place("write", 1, "/export.part/README.md"),
    Place("rename", 1, "/export"),  # renaming: the old folder, then the new one
    Place("rename", 2, "/export"),
]


def state_of(config):
    run = pathlib.Path(config.run)
    arguments = (run, checkpoints.newest_step(run), 48, 16, config.sae, config.train, sharding.make_mesh(1, 1, 64, 48))
    return jax.device_get(checkpoints.restore(*arguments))


def lines_of(config):
    lines = [json.loads(line) for line in pathlib.Path(config.run, "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in ("step", "loss", "fvu", "dead_fraction", "coverage")] for line in lines]


@pytest.mark.slow
def test_training_killed_at_every_place_ends_with_the_same_bits(base, with_train, config_file, kill_server, tmp_path):
    whole = with_train(base, run=str(tmp_path / "whole"), steps=400, checkpoint_every=20, keep=1, every=10)
    train(whole)
    parts = with_train(whole, run=str(tmp_path / "parts"))
    arguments = ["--config", config_file(tmp_path / "config.py", parts), "--config.train.resume=yes"]
    server = kill_server("revelio_jax.train")
    for place in TRAINING:
        server.kill(arguments, place)
    assert checkpoints.newest_step(pathlib.Path(parts.run)) < 400
    assert server.run(arguments) == 0
    ours, theirs = state_of(parts), state_of(whole)
    for (name, left), right in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=jax.tree_util.keystr(name))
    assert lines_of(parts) == lines_of(whole)
    for folder in ("", "checkpoints"):  # nothing is left behind
        names = [sorted(path.name for path in pathlib.Path(config.run, folder).iterdir()) for config in (parts, whole)]
        assert names[0] == names[1]


@pytest.mark.slow
def test_an_export_killed_at_every_place_leaves_the_old_folder_or_the_new_one(
    trained, with_train, config_file, kill_server, tmp_path
):
    expected = export(trained)
    shutil.copytree(trained.run, tmp_path / "run")
    (tmp_path / "run/export/README.md").write_text("the old card")
    config = with_train(trained, run=str(tmp_path / "run"))
    arguments = ["--config", config_file(tmp_path / "config.py", config)]
    server = kill_server("revelio_jax.export")
    for place in EXPORT:
        server.kill(arguments, place)
        old = tmp_path / "run" / ("export.old" if place == EXPORT[-1] else "export")
        assert (old / "README.md").read_text() == "the old card"
        assert len(list(old.iterdir())) == 3
    assert server.run(arguments) == 0
    assert not list((tmp_path / "run").glob("export.*"))
    for path in expected.iterdir():
        assert (tmp_path / "run/export" / path.name).read_bytes() == path.read_bytes()
