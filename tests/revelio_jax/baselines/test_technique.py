"""Techniques of eval-unlearn as methods.

The packages of the techniques concept_steerers and saeuron are on no package index that the tests can use. Modules of
their names take their place; the wrappers and the registry are those of eval-unlearn.
"""

import importlib
import sys
import types

import numpy as np
import pytest
import torch

from revelio_jax import baselines
from revelio_jax.errors import InputError
from tests.revelio_jax.baselines.conftest import PHRASES, PROMPTS, SAMPLING, SEEDS

pytest.importorskip("eval_unlearn", reason="eval-unlearn is not installed")


@pytest.fixture
def techniques(sd, monkeypatch):
    """The arguments with which each technique's package makes a pipeline; calls sample from the tiny pipeline."""
    made = {}

    def package(name: str, cls: str) -> None:
        class Pipeline:
            def __init__(self, **arguments):
                made[name] = arguments

            def generate(self, prompts, seed, **arguments):
                generator = torch.Generator().manual_seed(seed)
                return sd(prompts, generator=generator, **arguments).images

        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**{cls: Pipeline}))

    package("concept_steerers", "ConceptSteeringPipeline")
    package("saeuron", "SAeUronPipeline")
    from eval_unlearn.registry import local

    monkeypatch.setattr(local, "_TECHNIQUES", dict(local._TECHNIQUES))
    for name in ("concept_steerers", "saeuron"):
        module = f"eval_unlearn.techniques.{name}.wrapper"
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.import_module(module)
        monkeypatch.delitem(sys.modules, module)
    return made


@pytest.mark.parametrize("name", ["concept_steerers", "saeuron"])
def test_every_image_has_its_own_seed_and_guidance(name, sd, techniques, run):
    sampling = {"guidance": [3.0, 2.0, 3.0]}
    images = run("technique", sd, name=name, config={"multiplier": -2.0}, sampling=sampling)
    assert np.abs(images.astype(int) - run("plain", sd, sampling=sampling)).max() <= 1
    assert techniques[name]["concept"] == "glossy 3d, red"
    assert techniques[name]["multiplier"] == -2.0
    assert techniques[name]["device"] == "cpu"


def test_unknown_techniques_and_refused_configs_are_one_line(sd, techniques, run):
    with pytest.raises(InputError, match=r"name is 'magic'; eval-unlearn does not register it"):
        run("technique", sd, name="magic")
    with pytest.raises(InputError, match=r"the technique saeuron refuses its config: multiplier must not be 0"):
        run("technique", sd, name="saeuron", config={"multiplier": 0})
    with pytest.raises(InputError, match="config is 3; it must be a mapping"):
        run("technique", sd, name="saeuron", config=3)


def test_another_model_is_refused_unless_the_settings_allow_it(sd, techniques):
    sd.register_to_config(_name_or_path="my/own-model")
    try:
        settings = baselines.make_settings("technique", {"name": "saeuron"})
        message = "samples 'CompVis/stable-diffusion-v1-4', and the loaded pipeline is 'my/own-model'"
        with pytest.raises(InputError, match=message), baselines.open_method("technique", sd, PHRASES, settings):
            pass
        allowed = baselines.make_settings("technique", {"name": "saeuron", "other_model": True})
        with baselines.open_method("technique", sd, PHRASES, allowed) as sampler:
            assert len(sampler(PROMPTS[:1], SEEDS[:1], **SAMPLING).images) == 1
    finally:
        sd.register_to_config(_name_or_path=None)
