"""The backend gives the same latents and images as direct calls of the pipeline and the steerer."""

import dataclasses

import numpy as np
import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.explore import requests, views
from revelio_jax.explore.backend import Backend, BoundedCache
from revelio_jax.explore.catalog import load_catalog
from revelio_jax.explore.requests import SteeringRequest
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.sampling import sample
from revelio_jax.steering import Clamp
from revelio_jax.steering.concept import hidden_states
from tests.helpers.pipelines import with_safety_checker
from tests.revelio_jax.explore.conftest import LATENTS

PROMPT = "glossy 3d emoji of red apple"


def request_of(explorer, **fields):
    steer = explorer.config.steer
    request = requests.sampling(PROMPT, 3, steer.steps, steer.guidance, (steer.height, steer.width))
    return dataclasses.replace(request, **fields)


def test_active_latents_of_a_prompt_equal_the_codes_of_the_text_encoder(explorer):
    backend = explorer("clip.layer.2").backend
    active = backend.find_active(request_of(explorer("clip.layer.2")))
    codes_TF = backend.steerer.sae.codes(hidden_states(backend.pipe, backend.site, [PROMPT])[0]).numpy()
    for latent in range(LATENTS):
        np.testing.assert_allclose(active.map(latent)[0], codes_TF[:, latent], rtol=1e-4)
    first = active.strongest(1)[0]
    ranked = backend.latents_for(PROMPT, 5)
    assert first["latent"] == ranked[0]["latent"]


def test_active_latents_of_an_image_equal_the_codes_of_the_denoiser(explorer):
    """Only the conditional branch counts, at every timestep, and the image is the plain one."""
    explored = explorer("unet.up_blocks.1")
    backend, request = explored.backend, request_of(explored, seed=5)
    active = backend.find_active(request)
    site, seen = hook_points.resolve(backend.pipe, backend.site), []
    handle = site.module.register_forward_hook(lambda m, a, output: seen.append(site.read(output)[1]))
    image = backend._sample(request, None)
    handle.remove()
    np.testing.assert_array_equal(backend.plain_image(request), image)
    assert active.timesteps == tuple(backend.pipe.scheduler.timesteps.tolist())
    codes = torch.stack([backend.steerer.sae.codes(x) for x in seen]).numpy()
    assert active.grid[0] * active.grid[1] == codes.shape[1]
    for latent in range(LATENTS):
        np.testing.assert_allclose(active.map(latent), codes[..., latent], rtol=1e-4, atol=1e-5)


def test_positions_of_flux_s_text_stream_are_tokens(explorer):
    explored = explorer("flux.double.0.text")
    active = explored.backend.find_active(request_of(explored))
    assert active.grid is None
    assert active.shape == (3, explored.backend.positions)
    assert views.token_texts(active)[:3] == ["glossy", " 3d", " emoji"]
    latent = active.strongest(1)[0]["latent"]
    assert views.timeline(active, latent).count("<tr>") == 4
    steering = SteeringRequest(((latent, Clamp(50.0)),), "gated", positions=(0, 1))
    assert (
        explored.backend.steered_image(request_of(explored), steering)
        != explored.backend.plain_image(request_of(explored))
    ).any()


def test_steering_equals_the_steerer_and_strength_0_changes_no_bit(explorer):
    explored = explorer("clip.layer.2")
    backend, request = explored.backend, request_of(explored)
    plain = backend.plain_image(request)
    latent = backend.find_active(request).strongest(1)[0]["latent"]
    for concepts in (((latent, -1.5),), ((latent, Clamp(30.0)), ("glossy 3d", -1.0))):
        steered = backend.steered_image(request, SteeringRequest(concepts, "contrast"))
        with backend.steerer.attach(backend.pipe, dict(concepts), rule="contrast"):
            sampled = sample(backend.pipe, [PROMPT], [3], steps=3, guidance=2.5, height=32, width=32, batch_size=1)
            (expected,) = sampled.images
        np.testing.assert_array_equal(steered, expected)
        assert (steered != plain).any()
    np.testing.assert_array_equal(backend.steered_image(request, SteeringRequest(((latent, 0.0),), "contrast")), plain)


def test_token_numbers_out_of_range_are_refused(explorer):
    backend = explorer("clip.layer.2").backend
    with pytest.raises(InputError, match="a prompt has tokens 0-23"):
        backend.attach(SteeringRequest(((1, -1.0),), "contrast", positions=(3, 24)))


def test_the_cache_drops_the_oldest_and_keeps_the_newest():
    cache = BoundedCache(10, len)
    for name, item in (("a", "x" * 4), ("b", "x" * 4), ("c", "x" * 4), ("d", "x" * 40)):
        cache.put(name, item)
        assert cache.get(name) == item
        assert name != "c" or cache.get("a") is None
    assert cache.get("c") is None


def test_results_of_another_sae_are_not_shown(tmp_path, write_run, save_results):
    config = write_run(tmp_path / "run", "clip.layer.2")
    export = tmp_path / "run" / "export"
    assert "revelio interpret" in load_catalog(config, export, LATENTS).missing
    save_results(tmp_path / "run")
    catalog = load_catalog(config, export, LATENTS)
    assert (catalog.missing, catalog.name(7)) == ("", "zebra, stripes")
    assert catalog.search("zeb", 5) == [(7, "words: zebra, stripes")]
    assert [latent for latent, _ in catalog.search("e", 5)] == [8, 7, 9]  # the word "end" starts with e
    assert catalog.search("zebra tail", 5) == []
    assert catalog.search("orchard", 5) == [(9, "tag: orchard")]
    assert catalog.name(9) == "<b>red fruit</b>"  # the better tag
    assert "&lt;b&gt;red fruit&lt;/b&gt;" in views.heading(9, catalog, False)
    assert "<b>" not in views.card(9, catalog)
    with open(export / "sae_weights.safetensors", "ab") as file:
        file.write(b" ")
    assert "another SAE" in load_catalog(config, export, LATENTS).missing


def test_an_image_that_a_safety_checker_flags_is_refused(explorer):
    explored = explorer("clip.layer.2")
    plain = explored.backend
    checked = with_safety_checker(plain.pipe)
    backend = Backend(plain.config, plain.source, checked, plain.sae, plain.steerer, {})
    with pytest.raises(InputError, match="the safety checker of the pipeline flagged this image"):
        backend.plain_image(request_of(explored))
