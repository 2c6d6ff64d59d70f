"""Evaluations are counted by rows of the denoiser, for every family, and only in the block."""

import pytest
import torch

from revelio_jax.baselines import counted


@pytest.mark.parametrize(("guidance", "rows"), [(7.5, 2), (1.0, 1)])
def test_guidance_evaluates_two_rows_per_image_and_step(sd, guidance, rows):
    settings = {"guidance_scale": guidance, "height": 16, "width": 16, "output_type": "latent"}
    with counted(sd) as evaluations:
        sd(["a", "b"], num_inference_steps=3, **settings)
    assert evaluations.per_image(2) == (3.0 * rows, 0.0)
    sd("a", num_inference_steps=1, **settings)
    assert (evaluations.forward, evaluations.calls) == (2 * 3 * rows, 3)  # nothing is counted after the block


def test_a_transformer_gets_its_inputs_by_name(flux):
    with counted(flux) as evaluations:
        flux(["a", "b"], num_inference_steps=2, height=16, width=16, max_sequence_length=8, output_type="latent")
    assert evaluations.per_image(2) == (2.0, 0.0)


def test_passes_with_a_gradient_are_counted(sd):
    latents = torch.randn(1, 4, 8, 8, requires_grad=True)
    text = torch.randn(2, 77, sd.unet.config.cross_attention_dim)
    with counted(sd) as evaluations:
        sd.unet(torch.cat([latents] * 2), 10, encoder_hidden_states=text)
    assert (evaluations.forward, evaluations.backward) == (2, 2)
