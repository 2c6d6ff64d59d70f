"""The eval-unlearn technique by itself, and inside eval-unlearn if that is installed."""

import importlib.metadata
import json
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image

from revelio_jax.benchmark.eval_unlearn import SteererTechnique
from revelio_jax.errors import InputError
from tests.helpers import ROOT

MINIATURE = str(ROOT / "extract" / "miniature" / "sd")
GROUP = "eval_unlearn.techniques"
PROMPTS = ["glossy 3d emoji of red apple", "flat emoji of tiger"]


@pytest.fixture
def settings(sae_folder) -> dict:
    config = json.loads((sae_folder / "cfg.json").read_text())
    config["metadata"]["model_id"] = MINIATURE
    (sae_folder / "cfg.json").write_text(json.dumps(config))
    sampling = {"num_inference_steps": 2, "guidance_scale": 2.5, "device": "cpu"}
    return {"erase_concept": "glossy 3d", "sae": str(sae_folder), "rule": "contrast", **sampling}


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_every_prompt_is_steered_from_its_own_seed(settings):
    technique = SteererTechnique(**settings)
    plain = SteererTechnique(**settings, strength=0.0)
    images = technique.generate(PROMPTS, seed=3)
    assert [image.size for image in images] == [(32, 32)] * 2
    np.testing.assert_array_equal(pixels(technique.generate(PROMPTS, seed=3)), pixels(images))
    np.testing.assert_array_equal(pixels(technique.generate(PROMPTS[1:], seed=4)), pixels(images[1:]))
    plain_pixels = pixels(plain.generate(PROMPTS, seed=3))
    assert (pixels(images) != plain_pixels).any()
    sampling = {"num_inference_steps": 2, "guidance_scale": 2.5}
    direct = plain.pipe(PROMPTS[0], generator=torch.Generator().manual_seed(3), **sampling).images
    np.testing.assert_array_equal(pixels(direct), plain_pixels[:1])
    assert len(technique.generate(PROMPTS, num_inference_steps=1)) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"erase_concept": " "}, "erase_concept is empty"),
        ({"sae": "/nowhere"}, "cfg.json is missing"),
        ({"strength": float("nan")}, "finite number"),
        ({"rule": "magic"}, "rule is 'magic'"),
    ],
)
def test_wrong_settings_are_refused_before_the_first_prompt(settings, wrong, message):
    with pytest.raises(InputError, match=message):
        SteererTechnique(**settings | wrong)


def test_model_id_is_required_if_the_sae_does_not_name_its_model(sae_folder):
    with pytest.raises(InputError, match="model_id is not set"):
        SteererTechnique(erase_concept="flat", sae=str(sae_folder))


def entry_point() -> importlib.metadata.EntryPoint:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    ((name, value),) = declared.items()
    return importlib.metadata.EntryPoint(name, value, GROUP)


def test_the_entry_point_loads_the_class_without_eval_unlearn():
    assert entry_point().load() is SteererTechnique
    assert entry_point().name == "revelio_jax"


def test_eval_unlearn_runs_the_technique(settings, tmp_path, monkeypatch):
    """Uses eval-unlearn's runner, with a metric that records the images."""
    pytest.importorskip("eval_unlearn", reason="eval-unlearn is not installed")
    from eval_unlearn.registry import entrypoints, get_technique, register_metric
    from eval_unlearn.runners import SingleBenchmarkRunner
    from eval_unlearn.types import Dataset, MetricResult

    shown = []

    @register_metric("shown")
    class Shown:
        def __init__(self, **config):
            pass

        def load_dataset(self):
            return [Dataset(PROMPTS, {"source": "test"})]

        def update(self, images, prompts, metadata):
            shown.extend(images)

        def compute(self):
            return MetricResult("shown", float(len(shown)))

    # As after an installation: only the entry point in pyproject.toml is found.
    monkeypatch.setattr(entrypoints, "entry_points", lambda group: [entry_point()] if group == GROUP else [])
    report = SingleBenchmarkRunner(
        "revelio_jax", "shown", technique_config=settings, output_dir=str(tmp_path / "results"), seed=3
    ).run()
    assert get_technique("revelio_jax") is SteererTechnique
    assert report["metric_result"]["value"] == 2
    assert report["erase_concept"] == "glossy 3d"
    np.testing.assert_array_equal(pixels(shown), pixels(SteererTechnique(**settings).generate(PROMPTS, seed=3)))
