"""The attributes of every family agree with diffusers and with the tiny pipelines."""

import types

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from revelio_jax.config.extraction import FAMILIES as CONFIG_NAMES
from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import BY_CLASS, BY_NAME, FAMILIES, family_of
from revelio_jax.pipelines.families.base import whole_numbers

FLUX = BY_NAME["flux"]


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "dit"])
def test_a_pipeline_has_the_family_of_its_class(name, request):
    pipe = request.getfixturevalue(name)
    assert family_of(pipe) is BY_CLASS[type(pipe).__name__] is BY_NAME[name]
    subclass = type("Mine", (type(pipe),), {})
    assert family_of(object.__new__(subclass)) is BY_NAME[name]


def test_a_pipeline_of_another_task_has_the_family_of_its_components(sd):
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    assert family_of(pipe) is BY_NAME["sd"]


def test_the_config_allows_the_families_that_exist():
    assert set(CONFIG_NAMES) == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "dit"])
def test_hook_points_belong_to_the_components_that_the_family_names(name, request):
    family = BY_NAME[name]
    components = {*family.text_encoders.values(), family.denoiser}
    points = list(family.hook_points(request.getfixturevalue(name)))
    assert {point.component for point in points} == components
    prefixes = {*family.text_encoders, family.denoiser_prefix}
    assert {point.name.partition(".")[0] for point in points} == prefixes


def test_flux_packs_latents_as_its_pipeline_does():
    latents = torch.randn(2, 16, 8, 12)
    conditioning = {"encoder_hidden_states": torch.zeros(1, 5, 4), "pooled_projections": torch.zeros(1, 4)}
    arguments = FLUX.denoiser_arguments(latents, 250, conditioning)
    expected = diffusers.FluxPipeline._pack_latents(latents, 2, 16, 8, 12)
    torch.testing.assert_close(arguments["hidden_states"], expected, rtol=0, atol=0)
    ids = diffusers.FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32)
    torch.testing.assert_close(arguments["img_ids"], ids, rtol=0, atol=0)
    assert arguments["timestep"].tolist() == [0.25, 0.25]
    assert FLUX.image_grid(None, latents, arguments) == (4, 6)


def test_flux_sets_timesteps_as_its_pipeline_does():
    ours, theirs = (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True) for _ in range(2))
    FLUX.set_timesteps(ours, 7, (16, 24, 32))
    mu = calculate_shift(24 * 32 // 4, 256, 4096, 0.5, 1.15)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 7, 7), mu=mu)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=0)


def test_timesteps_are_exact_in_half_precision():
    assert whole_numbers(torch.zeros(2, 1, dtype=torch.bfloat16), 999).tolist() == [999, 999]


def test_more_steps_than_the_model_has_timesteps_are_refused(sd):
    with pytest.raises(InputError, match=r"config.extract.steps is 1001; it must be at most 1000"):
        BY_NAME["sd"].set_timesteps(sd.scheduler, 1001, (4, 8, 8))


def test_an_unknown_class_is_refused(dit):
    with pytest.raises(InputError, match="unknown class 'zebra'; this model takes a number below 1000, or a name"):
        BY_NAME["dit"].class_number(dit, "zebra")


@pytest.mark.parametrize(
    "components",
    [
        {"transformer": None, "text_encoder": None},  # PixArt and others
        {
            "transformer": None,
            "text_encoder": None,
            "text_encoder_2": None,
            "text_encoder_3": None,
        },  # SD 3
    ],
)
def test_more_text_encoders_than_a_family_has_are_another_family(components):
    with pytest.raises(InputError, match="is not a supported pipeline"):
        family_of(types.SimpleNamespace(**components))
