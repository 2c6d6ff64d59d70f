"""TraSCE: one step against NumPy in float64, and whole images where the equations give the plain pipeline."""

import types

import numpy as np
import pytest
import torch

from revelio_jax.baselines.trasce import Trasce, TrascePipeline, localized_loss, trasce
from revelio_jax.pipelines.sampling import sample
from tests.helpers.pipelines import with_safety_checker
from tests.revelio_jax.baselines.conftest import PROMPTS, SAMPLING, SEEDS

SHAPE = (2, 3, 4, 4)
SETTINGS = [
    Trasce(sigma=4.0, step_size=0.7),
    Trasce(mode="released", sigma=4.0, step_size=0.7),
    Trasce(loss_scale=0.0),
]


class Denoiser(torch.nn.Module):
    """eps(x, c) = c x^2 - x / (1 + c), elementwise, where c is a number for each row."""

    def forward(self, sample, timestep, encoder_hidden_states, return_dict):
        c = encoder_hidden_states[:, None, None, None]
        return (c * sample**2 - sample / (1 + c),)


def reference_step(x: np.ndarray, u: float, p: float, n: float, guidance: float, settings: Trasce):
    """Return the prediction and the latents of one step. The gradient is written out for ``Denoiser``."""

    def predict(c: float) -> np.ndarray:
        return c * x**2 - x / (1 + c)

    def slope(c: float) -> np.ndarray:
        return 2 * c * x - 1 / (1 + c)

    moved = x.copy()
    for i in range(len(x)):
        difference = predict(p)[i] - predict(n)[i]
        norm = np.sqrt((difference**2).sum())
        if settings.mode == "paper":
            kernel = np.exp(-(norm**2) / (2 * settings.width**2))
            by_difference = -difference / settings.width**2
        else:
            kernel = np.exp(-norm / settings.width)
            by_difference = -difference / (norm * settings.width)
        gradient = -settings.loss_scale * kernel * by_difference * (slope(p)[i] - slope(n)[i])
        moved[i] -= settings.step_size * gradient
    return predict(u) + guidance * (predict(p) - predict(n)), moved


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_is_that_of_the_equations(settings):
    x = np.random.default_rng(0).normal(size=SHAPE)
    u, p, n, guidance = 0.1, 0.5, 0.3, 7.5
    scheduler = types.SimpleNamespace(scale_model_input=lambda rows, _timestep: rows)
    pipe = types.SimpleNamespace(unet=Denoiser(), scheduler=scheduler, trasce=settings)
    texts = torch.tensor([u, u, p, p, n, n], dtype=torch.float64)
    with torch.no_grad():
        prediction, latents = TrascePipeline._predict(pipe, torch.from_numpy(x), torch.tensor(1), texts, guidance)
    expected, moved = reference_step(x, u, p, n, guidance, settings)
    np.testing.assert_allclose(prediction.numpy(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(latents.numpy(), moved, rtol=1e-12, atol=1e-12)
    assert (settings.loss_scale == 0) == bool((moved == x).all())
    assert not latents.requires_grad
    assert not prediction.requires_grad


@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_the_loss_is_that_of_each_image(settings):
    p, n = (np.random.default_rng(seed).normal(size=SHAPE) for seed in (1, 2))
    loss = localized_loss(torch.from_numpy(p), torch.from_numpy(n), settings).numpy()
    norms = np.sqrt(((p - n) ** 2).sum((1, 2, 3)))
    exponents = norms**2 / 32 if settings.mode == "paper" else norms / 4
    np.testing.assert_allclose(loss, -1.5 * np.exp(-exponents), rtol=1e-13)
    half = localized_loss(torch.from_numpy(p).half(), torch.from_numpy(n).half(), settings)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_the_gradient_is_finite_where_prompt_and_concept_are_equal(mode, sd, run):
    images = run("trasce", sd, ["cat"], [1], phrases=["cat"], mode=mode, loss_scale=5.0)
    without = run("trasce", sd, ["cat"], [1], phrases=["cat"], mode=mode, loss_scale=0.0)
    np.testing.assert_array_equal(images, without)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_with_an_empty_concept_and_no_loss_images_are_those_of_the_plain_pipeline(sd, scheduler):
    """u + guidance (p - n) with n = u is classifier-free guidance."""
    import diffusers

    pipe = diffusers.StableDiffusionPipeline(
        **sd.components
        | {"scheduler": getattr(diffusers, scheduler).from_config(sd.scheduler.config, skip_prk_steps=True)},
        requires_safety_checker=False,
    )
    plain = sample(pipe, PROMPTS, SEEDS, **SAMPLING)
    with trasce(pipe, ["cat"], Trasce(loss_scale=0.0)) as sampler:
        # The settings refuse an empty phrase.
        sampler.__closure__[0].cell_contents.negative = ""
        np.testing.assert_array_equal(sampler(PROMPTS, SEEDS, **SAMPLING).images, plain.images)


def test_flagged_images_are_black_and_reported(sd):
    with trasce(with_safety_checker(sd), ["cat"], Trasce()) as sampler:
        samples = sampler(PROMPTS, SEEDS, **SAMPLING)
    assert samples.flagged.all()
    assert not samples.images.any()
