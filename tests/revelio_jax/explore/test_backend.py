"""What the page asks of the pipeline: the same as by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.explore import requests, views
from revelio_jax.explore.backend import BoundedCache
from revelio_jax.explore.catalog import know
from revelio_jax.explore.requests import SteeringRequest
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.sampling import sample
from revelio_jax.steering import Clamp
from revelio_jax.steering.concept import hidden_states
from tests.revelio_jax.explore.conftest import LATENTS

PROMPT = "glossy 3d emoji of red apple"


def sampling(explorer, **fields):
    steer = explorer.config.steer
    made = requests.sampling(PROMPT, 3, steer.steps, steer.guidance, (steer.height, steer.width))
    return dataclasses.replace(made, **fields)


def test_what_fires_on_a_prompt_is_what_the_encoder_makes(explorer):
    live = explorer("clip.layer.2").live
    fired = live.fires(sampling(explorer("clip.layer.2")))
    codes_TF = live.steerer.sae.codes(hidden_states(live.pipe, live.site, [PROMPT])[0]).numpy()
    for latent in range(LATENTS):
        np.testing.assert_allclose(fired.map(latent)[0], codes_TF[:, latent], rtol=1e-4)
    first = fired.strongest(1)[0]
    by_hand = live.latents_for(PROMPT, 5)
    assert first["latent"] == by_hand[0]["latent"]


def test_what_fires_in_a_picture_is_what_its_denoiser_makes(explorer):
    """Of the branch that sees the prompt, at every timestep; and the picture is the plain one."""
    explored = explorer("unet.up_blocks.1")
    live, wanted = explored.live, sampling(explorer("unet.up_blocks.1"), seed=5)
    fired = live.fires(wanted)
    site, seen = hook_points.resolve(live.pipe, live.site), []
    handle = site.module.register_forward_hook(lambda m, a, output: seen.append(site.read(output)[1]))
    picture = live._sample(wanted, None)
    handle.remove()
    np.testing.assert_array_equal(live.plain(wanted), picture)
    assert fired.timesteps == tuple(live.pipe.scheduler.timesteps.tolist())
    codes = torch.stack([live.steerer.sae.codes(x) for x in seen]).numpy()
    assert fired.grid[0] * fired.grid[1] == codes.shape[1]
    for latent in range(LATENTS):
        np.testing.assert_allclose(fired.map(latent), codes[..., latent], rtol=1e-4, atol=1e-5)


def test_the_stream_of_text_in_flux_s_denoiser_is_shown_by_its_tokens(explorer):
    explored = explorer("flux.double.0.text")
    fired = explored.live.fires(sampling(explored))
    assert fired.grid is None
    assert fired.shape == (3, explored.live.positions)
    assert views.shown_tokens(fired)[:3] == ["glossy", " 3d", " emoji"]
    latent = fired.strongest(1)[0]["latent"]
    assert views.timeline(fired, latent).count("<tr>") == 4
    steering = SteeringRequest(((latent, Clamp(50.0)),), "gated", positions=(0, 1))
    assert (explored.live.steered(sampling(explored), steering) != explored.live.plain(sampling(explored))).any()


def test_steering_is_as_by_hand_and_a_strength_of_0_changes_no_bit(explorer):
    explored = explorer("clip.layer.2")
    live, wanted = explored.live, sampling(explored)
    plain = live.plain(wanted)
    latent = live.fires(wanted).strongest(1)[0]["latent"]
    for concepts in (((latent, -1.5),), ((latent, Clamp(30.0)), ("glossy 3d", -1.0))):
        steered = live.steered(wanted, SteeringRequest(concepts, "contrast"))
        with live.steerer.attach(live.pipe, dict(concepts), rule="contrast"):
            (by_hand,) = sample(live.pipe, [PROMPT], [3], steps=3, guidance=2.5, height=32, width=32, batch_size=1)
        np.testing.assert_array_equal(steered, by_hand)
        assert (steered != plain).any()
    np.testing.assert_array_equal(live.steered(wanted, SteeringRequest(((latent, 0.0),), "contrast")), plain)


def test_positions_that_a_prompt_does_not_have(explorer):
    live = explorer("clip.layer.2").live
    with pytest.raises(InputError, match="a prompt has the tokens 0-23"):
        live.attach(SteeringRequest(((1, -1.0),), "contrast", positions=(3, 24)))


def test_what_is_kept_has_room_for_the_newest():
    kept = BoundedCache(10, len)
    for name, made in (("a", "x" * 4), ("b", "x" * 4), ("c", "x" * 4), ("d", "x" * 40)):
        kept.put(name, made)
        assert kept.get(name) == made
        assert name != "c" or kept.get("a") is None
    assert kept.get("c") is None


def test_what_is_known_of_another_sae_is_not_shown(tmp_path, write_run, save_known):
    config = write_run(tmp_path / "run", "clip.layer.2")
    export = tmp_path / "run" / "export"
    assert "python -m revelio_jax.interpret" in know(config, export, LATENTS).missing
    save_known(tmp_path / "run")
    known = know(config, export, LATENTS)
    assert (known.missing, known.name(7)) == ("", "zebra, stripes")
    assert known.search("zeb", 5) == [(7, "words: zebra, stripes")]
    assert [latent for latent, _ in known.search("e", 5)] == [8, 7, 9]  # end starts with it
    assert known.search("zebra tail", 5) == []
    assert known.search("orchard", 5) == [(9, "tag: orchard")]
    assert known.name(9) == "<b>red fruit</b>"  # the better tag
    assert "&lt;b&gt;red fruit&lt;/b&gt;" in views.heading(9, known, False)
    assert "<b>" not in views.card(9, known)
    with open(export / "sae_weights.safetensors", "ab") as file:
        file.write(b" ")
    assert "another SAE" in know(config, export, LATENTS).missing
