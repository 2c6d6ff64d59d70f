"""Images are reused only if the files that they depend on are the same."""

import dataclasses

import pytest

from revelio_jax.benchmark import estimate, identity
from revelio_jax.benchmark.images import Shot
from revelio_jax.benchmark.tasks import CONCEPT, TaskPrompt
from revelio_jax.config import Config


@pytest.fixture
def config(tmp_path):
    """A config whose model and SAE are local files."""
    for name in ("model/unet/weights", "export/cfg.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    return changed(Config(), "model", id=str(tmp_path / "model"))


def changed(config, section, **values):
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def test_the_identity_depends_on_files_and_settings(config, tmp_path, monkeypatch):
    def settings(config=config):
        return identity.identity(config, tmp_path / "export")

    before = settings()
    assert settings() == before
    for other in (changed(config, "steer", steps=3), changed(config, "model", dtype="bfloat16")):
        assert settings(other) != before
    assert settings(changed(config, "steer", batch_size=9)) == before  # images do not depend on it
    for name in ("model/unet/weights", "export/cfg.json"):
        (tmp_path / name).write_text("a new file")
        assert settings() != before
        before = settings()
    version = identity.importlib.metadata.version
    monkeypatch.setattr(
        identity.importlib.metadata, "version", lambda name: "0" if name == "diffusers" else version(name)
    )
    assert settings() != before


def test_a_hub_id_has_no_files_and_a_method_may_need_no_sae(config):
    found = identity.identity(changed(config, "model", id="owner/name"), None)
    assert found["model_files"] == []
    assert found["sae"] is None


def test_the_papers_time_is_used_for_its_models_only():
    assert estimate.seconds_per_image("CompVis/stable-diffusion-v1-4", 50, 512, 512) == 3.02
    assert estimate.seconds_per_image("folder/stable-diffusion-v1-4/", 25, 256, 512) == pytest.approx(3.02 / 4)
    assert estimate.seconds_per_image("black-forest-labs/FLUX.1-dev", 50, 512, 512) is None


def test_slower_methods_cost_more():
    shots = [Shot(TaskPrompt("a", "0", CONCEPT, "x", 1, 7.5, 100, 100), 0)] * 10
    found = estimate.estimate({"plain": shots, "trasce": shots}, 36.0)
    assert found.images == 20
    assert found.hours == pytest.approx((10 + 10 * estimate.RELATIVE_TIMES["trasce"]) * 36 / 3600)
    assert found.gigabytes == pytest.approx(20 * 100 * 100 * estimate.BYTES_PER_PIXEL / 1e9)
    assert estimate.estimate({"plain": shots}, None).hours is None
