"""Sampling: seeds, batches, and the guidance of each family; a distilled FLUX and one that is not."""

import types

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from revelio_jax.pipelines.sampling import sample
from tests.helpers import MINIATURES

SETTINGS = {"steps": 3, "height": 32, "width": 32}
PROMPTS = ["flat emoji of red apple", "noto emoji of tulip", "glossy 3d emoji of bus"]


@pytest.fixture(scope="module", params=["sd", "flux"])
def pipe(request):
    pipe = DiffusionPipeline.from_pretrained(MINIATURES / request.param, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_an_image_depends_on_its_seed_and_not_on_its_batch(pipe):
    together = sample(pipe, PROMPTS, [1, 2, 3], guidance=2.0, batch_size=3, **SETTINGS).images
    assert together.shape == (3, 32, 32, 3)
    assert together.dtype == np.uint8
    in_parts = sample(pipe, PROMPTS, [1, 2, 3], guidance=2.0, batch_size=2, **SETTINGS).images
    assert np.abs(together.astype(int) - in_parts).max() <= 1
    other_seed = sample(pipe, PROMPTS, [1, 2, 4], guidance=2.0, batch_size=3, **SETTINGS).images
    assert np.abs(together.astype(int) - other_seed).mean((1, 2, 3)).argmax() == 2


def test_each_prompt_may_have_its_own_guidance(pipe):
    scales = [2.0, 1.5, 2.0]
    together = sample(pipe, PROMPTS, [1, 2, 3], guidance=scales, batch_size=3, **SETTINGS).images
    for i, scale in enumerate(scales):
        alone = sample(pipe, PROMPTS[i : i + 1], [i + 1], guidance=scale, batch_size=1, **SETTINGS).images
        assert np.abs(together[i].astype(int) - alone[0]).max() <= 1
    same = sample(pipe, PROMPTS, [1, 2, 3], guidance=2.0, batch_size=3, **SETTINGS).images
    assert np.abs(together[1].astype(int) - same[1]).max() > 1


def test_guidance_moves_away_from_the_empty_prompt(pipe):
    """Guidance g is e + g (p - e): linear in one step of the latents, whatever the family calls it."""
    latents = [_latents_after_one_step(pipe, guidance) for guidance in (1.0, 2.0, 3.0)]
    assert (latents[1] - latents[0]).abs().mean() > 0.01
    torch.testing.assert_close(latents[2] - latents[1], latents[1] - latents[0], atol=1e-4, rtol=1e-4)


def test_a_distilled_flux_gets_embedded_guidance():
    call = {}

    def pipe(prompt, **arguments):
        call.update(arguments)
        return types.SimpleNamespace(images=np.zeros((len(prompt), 8, 8, 3)))

    transformer = type("FluxTransformer2DModel", (types.SimpleNamespace,), {})
    pipe.transformer = transformer(config=types.SimpleNamespace(guidance_embeds=True))
    pipe.text_encoder = pipe.text_encoder_2 = None
    pipe.tokenizer_2 = types.SimpleNamespace(model_max_length=10**30)
    sample(pipe, ["a"], [0], steps=1, guidance=3.5, height=8, width=8, batch_size=1)
    assert call["guidance_scale"] == 3.5
    assert call["max_sequence_length"] == 512
    assert "true_cfg_scale" not in call


def _latents_after_one_step(pipe, guidance: float) -> torch.Tensor:
    latents = []

    def record(_pipe, _step, _timestep, tensors):
        latents.append(tensors["latents"].clone())
        return tensors

    def call(**arguments):
        return pipe(callback_on_step_end=record, **arguments)

    for name in pipe.components:  # the family is found by them
        setattr(call, name, getattr(pipe, name))
    sample(call, PROMPTS, [1, 2, 3], guidance=guidance, batch_size=3, **SETTINGS | {"steps": 1})
    return latents[0]
