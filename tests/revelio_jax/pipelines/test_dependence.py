"""Hook points that no output depends on are found by a forward pass, and changing any other changes the output."""

import pytest
import torch

from revelio_jax.pipelines import dependence, hook_points, hooks
from revelio_jax.pipelines.families import family_of

UNUSED = {"sd": set(), "sdxl": {"clip_l.layer.2"}, "flux": {"flux.single.1.text"}, "dit": set()}


@torch.no_grad()
def prediction(pipe, point=None) -> torch.Tensor:
    """Return the prediction of the denoiser for a prompt, with the activations of a hook point changed."""
    family = family_of(pipe)
    remove = hooks.hook(point, lambda x: x + torch.linspace(-3, 3, x.shape[-1])) if point else lambda: None
    try:
        conditioning = family.conditioning(pipe, "1" if family.name == "dit" else "a cat", 1.0, (8, 8))
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        arguments = family.denoiser_arguments(latents, 500, conditioning)
        return family.denoiser_of(pipe)(**arguments, return_dict=False)[0]
    finally:
        remove()


@pytest.mark.parametrize("family", UNUSED)
def test_exactly_the_hook_points_that_change_nothing_are_found(family, own):
    pipe = own(family)
    plain = prediction(pipe)
    points = [hook_points.resolve(pipe, name) for name in hook_points.point_names(pipe)]
    without_effect = {point.name for point in points if torch.equal(prediction(pipe, point), plain)}
    assert without_effect == UNUSED[family]
    assert dependence.unused_in_text_encoders(pipe) | dependence.unused_in_denoiser(pipe) == without_effect


@pytest.mark.parametrize("skip", [None, 0, 1])
def test_clip_skip_leaves_more_layers_unused(sdxl, skip):
    unused = {f"clip_l.layer.{i}" for i in range(2 - (skip or 0), 3)}
    assert dependence.unused_in_text_encoders(sdxl, clip_skip=skip) == unused


def test_the_pipeline_is_left_as_it_is(sdxl):
    components = dict(sdxl.components)
    config = dict(sdxl.config)
    dependence.unused_in_text_encoders(sdxl, clip_skip=1)
    dependence.unused_in_denoiser(sdxl)
    assert sdxl.components == components
    assert dict(sdxl.config) == config
    assert all(not p.is_meta for p in sdxl.text_encoder.parameters())


def test_a_pipeline_that_cannot_be_traced_has_no_unused_hook_points(sdxl):
    class Other(type(sdxl)):
        def encode_prompt(self, *args, **kwargs):
            raise ValueError("needs an image")

    assert dependence.unused_in_text_encoders(Other(**sdxl.components)) == frozenset()
