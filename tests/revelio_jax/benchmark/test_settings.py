"""Saved measurements are reused only if the files that they depend on are the same."""

import dataclasses
import pathlib

import pytest

from revelio_jax import config as configs

pytest.importorskip("torch")
table = pytest.importorskip("revelio_jax.benchmark.table")


@pytest.fixture
def config(tmp_path):
    """A config whose model, judge, mask and prompts are local files."""
    for name in ("model/unet/weights", "judge/weights", "mask.png", "prompts.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    config = configs.Config()
    steer = dataclasses.replace(
        config.steer,
        mask=str(tmp_path / "mask.png"),
        judge=str(tmp_path / "judge"),
        prompts=str(tmp_path / "prompts.csv"),
    )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, id=str(tmp_path / "model")), steer=steer)


@pytest.mark.parametrize("name", ["model/unet/weights", "judge/weights", "mask.png", "prompts.csv"])
def test_settings_depend_on_every_file(config, tmp_path, name):
    def settings():
        return table.settings_of(config, 4, [0], pathlib.Path(tmp_path, "export"))

    before = settings()
    assert settings() == before
    (tmp_path / name).write_text("a new file")
    assert settings() != before


def test_settings_depend_on_the_version_of_diffusers(config, tmp_path, monkeypatch):
    before = table.settings_of(config, 4, [0], tmp_path)
    version = table.importlib.metadata.version
    monkeypatch.setattr(table.importlib.metadata, "version", lambda name: "0" if name == "diffusers" else version(name))
    assert table.settings_of(config, 4, [0], tmp_path) != before


def test_a_hub_id_and_a_missing_mask_have_no_files(config, tmp_path):
    steer = dataclasses.replace(config.steer, mask=str(tmp_path / "missing.png"))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, id="owner/name"), steer=steer)
    settings = table.settings_of(config, 4, [0], tmp_path)
    assert settings["model_files"] == []
    assert settings["mask"] is None
