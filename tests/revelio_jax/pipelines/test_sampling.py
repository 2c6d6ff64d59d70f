"""Guidance as each family takes it; a FLUX that was distilled, and one that was not."""

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
    pipe = DiffusionPipeline.from_pretrained(MINIATURES / request.param, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_picture_depends_on_its_seed_and_not_on_its_batch(pipe):
    made = sample(pipe, PROMPTS, [1, 2, 3], guidance=2.0, batch_size=3, **SETTINGS)
    assert made.shape == (3, 32, 32, 3)
    assert made.dtype == np.uint8
    in_parts = sample(pipe, PROMPTS, [1, 2, 3], guidance=2.0, batch_size=2, **SETTINGS)
    assert np.abs(made.astype(int) - in_parts).max() <= 1
    other = sample(pipe, PROMPTS, [1, 2, 4], guidance=2.0, batch_size=3, **SETTINGS)
    assert np.abs(made.astype(int) - other).mean((1, 2, 3)).argmax() == 2


def test_guidance_moves_away_from_the_empty_prompt(pipe):
    """Guidance g is e + g (p - e): linear in one step of the latents, whatever the family calls it."""
    latents = [_latents(pipe, guidance) for guidance in (1.0, 2.0, 3.0)]
    assert (latents[1] - latents[0]).abs().mean() > 0.01
    torch.testing.assert_close(latents[2] - latents[1], latents[1] - latents[0], atol=1e-4, rtol=1e-4)


def test_a_distilled_flux_is_told_its_guidance():
    told = {}

    def pipe(prompts, **arguments):
        told.update(arguments)
        return types.SimpleNamespace(images=np.zeros((len(prompts), 8, 8, 3)))

    config = types.SimpleNamespace(guidance_embeds=True)
    pipe.transformer = types.SimpleNamespace(config=config)
    pipe.text_encoder_2, pipe.tokenizer_2 = None, types.SimpleNamespace(model_max_length=10**30)
    sample(pipe, ["a"], [0], steps=1, guidance=3.5, height=8, width=8, batch_size=1)
    assert told["guidance_scale"] == 3.5
    assert told["max_sequence_length"] == 512
    assert "true_cfg_scale" not in told


def _latents(pipe, guidance: float) -> torch.Tensor:
    """What the denoiser's one step leaves, through the pipeline as ``sample`` calls it."""
    found = []

    def keep(_pipe, _step, _timestep, kept):
        found.append(kept["latents"].clone())
        return kept

    def call(prompts, **arguments):
        return pipe(prompts, callback_on_step_end=keep, **arguments)

    # sample() asks the pipeline what it is, so the stand-in has its parts.
    for name in pipe.components:
        setattr(call, name, getattr(pipe, name))
    sample(call, PROMPTS, [1, 2, 3], guidance=guidance, batch_size=3, **SETTINGS | {"steps": 1})
    return found[0]
