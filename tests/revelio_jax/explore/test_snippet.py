"""The Python program of the page loads the pipeline as the explorer does, and samples the same image."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from revelio_jax.config import ModelConfig
from revelio_jax.explore import backend, requests
from revelio_jax.explore.requests import SteeringRequest
from revelio_jax.explore.snippet import snippet
from revelio_jax.pipelines.loading import load_pipeline
from tests.helpers import MINIATURES
from tests.helpers.pipelines import with_safety_checker


def loaded(config, model: str, **fields):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, id=model, **fields))
    request = requests.sampling("red apple", 3, config.steer.steps, config.steer.guidance, (32, 32))
    return backend.load(config, None), request


@pytest.mark.parametrize("case", ["plain", "safety checker", "variant", "sibling"])
def test_the_program_samples_the_image_of_the_page(case, tmp_path, write_run, monkeypatch):
    config = write_run(tmp_path / "run", "clip.layer.2")
    model = tmp_path / "extract" / "sd"
    miniature = load_pipeline(ModelConfig(id=str(MINIATURES / "sd"), family="sd", device="cpu"))
    if case == "safety checker":
        with_safety_checker(miniature).save_pretrained(model)
    elif case == "variant":
        miniature.save_pretrained(model, variant="fp16")
    else:
        shutil.copytree(MINIATURES / "sd", model)
    if case == "sibling":
        index = json.loads((model / "model_index.json").read_text())
        index["_class_name"] = "StableDiffusionImg2ImgPipeline"
        (model / "model_index.json").write_text(json.dumps(index))
    explored, request = loaded(config, str(model))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet(explored, request), names)
    np.testing.assert_array_equal(np.asarray(names["image"]), explored.plain_image(request))
    steering = SteeringRequest(((3, 2.0),), "gated")
    exec(snippet(explored, request, steering), names)
    np.testing.assert_array_equal(np.asarray(names["image"]), explored.steered_image(request, steering))


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_the_program_offloads_as_configured(offload, tmp_path, write_run):
    config = write_run(tmp_path / "run", "clip.layer.2")
    explored, request = loaded(config, str(MINIATURES / "sd"), offload=offload, dtype="bfloat16")
    program = snippet(explored, request)
    assert f"pipe.enable_{offload}_cpu_offload()" in program
    assert "dtype=torch.bfloat16" in program
    assert ".to(" not in program.partition("image =")[0]
    compile(program, "program", "exec")
