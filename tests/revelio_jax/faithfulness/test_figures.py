"""The figures on tiny pipelines: the loss against passes written by hand, and the recorded rows of every hook point."""

import diffusers
import numpy as np
import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.faithfulness import experiment, figures, reference
from revelio_jax.faithfulness.figures import NoisedImages
from revelio_jax.faithfulness.patches import Clock, Reconstruction, zeros
from revelio_jax.faithfulness.sites import scanned_site
from revelio_jax.pipelines import noising
from revelio_jax.pipelines.families import family_of
from revelio_jax.steering.sae import Sae
from tests.helpers.steering import record_outputs
from tests.revelio_jax.faithfulness.conftest import ALL, CLASSES, PROMPTS

SIZE = (8, 8)


def noised(pipe, batch_size=2, timesteps=(100, 700)) -> NoisedImages:
    images = np.random.default_rng(0).uniform(-1, 1, (3, 3, *SIZE)).astype(np.float32)
    texts = CLASSES if family_of(pipe).name == "dit" else PROMPTS
    latents = noising.encode_images(pipe, images)
    return NoisedImages(latents, [4, 5, 6], timesteps, texts[:3], SIZE, 3.0, batch_size)


@torch.no_grad()
def test_loss_of_sd_is_the_error_of_the_noise(tiny):
    pipe = tiny("sd")
    images = noised(pipe)
    losses = figures.denoising_loss(pipe, images, images.conditioning(pipe))
    one = images.latents[1:2]
    noise = noising.noise_of(one, [5], 700)
    x = pipe.scheduler.add_noise(one, noise, torch.tensor([700]))
    text = pipe.encode_prompt(PROMPTS[1], "cpu", 1, False)[0]
    expected = (pipe.unet(x, 700, text).sample - noise).square().mean()
    assert losses[1, 1] == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_loss_of_flux_is_the_error_of_the_velocity(tiny):
    pipe = tiny("flux")
    images = noised(pipe, timesteps=(250,))
    losses = figures.denoising_loss(pipe, images, images.conditioning(pipe))
    latents = images.latents
    noise = noising.noise_of(latents, images.seeds, 250)
    x = 0.75 * latents + 0.25 * noise
    pack = pipe._pack_latents
    target = pack(noise - latents, *latents.shape)
    arguments = family_of(pipe).denoiser_arguments(x, 250, images.conditioning(pipe))
    output = pipe.transformer(**arguments, return_dict=False)[0]
    np.testing.assert_allclose(losses[:, 0], (output - target).square().mean((1, 2)).numpy(), rtol=1e-4)


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux", "dit"])
def test_loss_does_not_depend_on_the_batch_size(family, tiny):
    pipe = tiny(family)
    one, three = (noised(pipe, size) for size in (1, 3))
    losses = [figures.denoising_loss(pipe, each, each.conditioning(pipe)) for each in (one, three)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert len(np.unique(losses[0].round(6))) == 6  # each image and timestep differs


def test_targets_follow_the_prediction_type():
    latents = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    make = diffusers.DDPMScheduler
    found = {kind: noising.target(make(prediction_type=kind), latents, [3], 400)
             for kind in ("epsilon", "v_prediction", "sample")}  # fmt: skip
    noise = noising.noise_of(latents, [3], 400)
    alpha = make().alphas_cumprod[400] ** 0.5
    assert torch.equal(found["epsilon"], noise)
    assert torch.equal(found["sample"], latents)
    torch.testing.assert_close(found["v_prediction"], alpha * noise - (1 - alpha**2) ** 0.5 * latents)
    unknown = make()
    unknown.register_to_config(prediction_type="other")
    with pytest.raises(InputError, match="prediction_type is 'other'"):
        noising.target(unknown, latents, [3], 400)


def test_embedding_distance_is_zero_without_change_and_counts_the_pooled_vector(tiny):
    pipe = tiny("flux")
    plain = figures.encode(pipe, PROMPTS[:2], 3.0, SIZE)
    assert (figures.embedding_distance(plain, plain) == 0).all()
    doubled = plain | {"pooled_projections": 2 * plain["pooled_projections"]}
    np.testing.assert_allclose(figures.embedding_distance(doubled, plain), 0.5, rtol=1e-6)
    np.testing.assert_allclose(
        figures.embedding_distance({name: torch.zeros_like(row) for name, row in plain.items()}, plain), 1.0, rtol=1e-6
    )


@pytest.mark.parametrize(("family", "name"), ALL)
def test_a_reconstruction_changes_less_than_zeros(family, name, tiny, make_inputs):
    """With a dictionary of unit vectors the reconstruction is exact, so nothing changes but rounding."""
    pipe, inputs = tiny(family), make_inputs(family)
    site = scanned_site(pipe, name)
    run = experiment.prepare(pipe, inputs, Clock(), (100, 500))
    d = sum(point.d for point in site.points)
    exact = experiment.measure(run, site, Reconstruction(identity_sae(d)), "", with_picture=False)
    ablated = experiment.measure(run, site, zeros, "", with_picture=False)
    np.testing.assert_allclose(exact["loss"], run.plain["loss"], rtol=1e-4)
    assert not np.allclose(ablated["loss"], run.plain["loss"], rtol=1e-5)
    assert ("embedding" in exact) == site.is_text
    if site.is_text:
        assert exact["embedding"].max() < 1e-4 < ablated["embedding"].min()


def identity_sae(d: int) -> Sae:
    W_dec_FD = torch.cat([torch.eye(d), -torch.eye(d)])
    return Sae(W_dec_FD.T, torch.zeros(2 * d), W_dec_FD, torch.zeros(d), None, {})


@pytest.mark.parametrize(("family", "name"), ALL)
def test_reference_rows_are_those_that_a_patch_replaces(family, name, tiny, make_inputs):
    pipe, inputs = tiny(family), make_inputs(family)
    site = scanned_site(pipe, name)
    found = reference.record(pipe, [site], inputs, (100,), keep_rows=10_000)[site.name]
    with record_outputs(pipe, name.partition("+")[0]) as outputs:
        prompts = experiment.settings_of(inputs.reference, inputs.config, inputs.flags["seed"] + len(inputs.measured))
        if site.is_text:
            figures.encode(pipe, prompts.texts, 3.0, SIZE)
        else:
            experiment.sample_prompts(pipe, prompts, inputs.config, "")
    if not site.is_text:
        branches = [family_of(pipe).branches(len(x), guided=len(x) == 4)["conditional"] for x in outputs]
        outputs = [x[rows] for x, rows in zip(outputs, branches, strict=True)]
    rows = torch.cat([x.float().flatten(0, 1) for x in outputs])
    width = site.points[0].d
    if site.positions == "all":
        assert len(found.rows()) == len(rows)
        torch.testing.assert_close(found.mean()[:width], rows.mean(0), rtol=1e-4, atol=1e-5)
    else:
        assert 0 < len(found.rows()) < len(rows)
    assert found.rows().shape[1] == sum(point.d for point in site.points)


def test_noised_images_give_rows_of_a_denoiser_at_the_timesteps_of_training(tiny, make_inputs):
    pipe, inputs = tiny("dit"), make_inputs("dit", images=2, mode="noised")
    site = scanned_site(pipe, "dit.block.1")
    found = reference.record(pipe, [site], inputs, (100, 300), keep_rows=10_000)[site.name]
    assert len(found.rows()) == 2 * 2 * found.at(100.0).shape[0]
    assert not torch.allclose(found.at(100.0), found.at(300.0))
