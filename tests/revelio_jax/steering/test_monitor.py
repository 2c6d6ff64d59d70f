"""``steerer.watch`` records the latents that fire: per pass, branch, timestep and position, in bounded memory."""

import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.steering import Clamp
from tests.helpers.steered_pipelines import DENOISER_POINT, ROWS, TEXT_POINT, built, generate, steered_rows
from tests.helpers.steering import record_outputs

NAMES = ["StableDiffusionPipeline", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLPAGPipeline"]
NAMES += ["FluxPipeline, true_cfg_scale", "FluxKontextPipeline", "AnimateDiffPipeline"]


@pytest.mark.parametrize("name", NAMES)
def test_watched_codes_are_those_of_the_activations(tiny, make_steerer, name):
    row = ROWS[name]
    pipe, site = built(name, tiny(row.family)), DENOISER_POINT[row.family]
    steerer = make_steerer(pipe, site)
    with record_outputs(pipe, site) as outputs, steerer.watch(pipe) as codes:
        generate(pipe, row)
    assert len(codes.passes) == len(outputs)
    for one, x_BTD in zip(codes.passes, outputs, strict=True):
        dense = torch.zeros(*x_BTD.shape[:2], 48).scatter(-1, one.latents.long(), one.values)
        torch.testing.assert_close(dense, steerer.sae.codes(x_BTD))
        assert 0 <= one.timestep <= 1000
        assert one.of(5).equal(dense[..., 5])
    branches = [branch for one in codes.passes for branch in one.branches][: len(steered_rows(row))]
    assert [branch == "conditional" for branch in branches] == steered_rows(row)
    assert type(pipe).__call__.__qualname__.startswith(type(pipe).__qualname__)


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_text_encoders_are_watched_branch_by_branch(tiny, make_steerer, run, family):
    pipe = tiny(family)
    steerer = make_steerer(pipe, TEXT_POINT[family])
    plain = run(pipe, negative=["red", "flat cat"])
    with steerer.watch(pipe) as codes:
        assert torch.equal(run(pipe, negative=["red", "flat cat"]), plain)
    assert [one.branches[0] for one in codes.passes] == ["conditional", "unconditional"]
    assert codes.passes[0].timestep is None
    assert codes.heatmap(codes.strongest(1)[0][0]).shape == (codes.passes[0].values.shape[1],)


def test_joined_encoders_have_one_code(tiny, make_steerer, run):
    pipe, site = tiny("sdxl"), "clip_l.layer.1+clip_g.layer.1"
    steerer = make_steerer(pipe, site)
    first, second = site.split("+")
    with record_outputs(pipe, first) as left, record_outputs(pipe, second) as right, steerer.watch(pipe) as codes:
        run(pipe, negative=["red", "flat cat"], steps=1)
    assert len(codes.passes) == len(left) == 2
    for one, *parts in zip(codes.passes, left, right, strict=True):
        z = steerer.sae.codes(torch.cat(parts, -1))
        torch.testing.assert_close(one.of(3), z[..., 3])


def test_watching_reads_before_steering_and_a_heatmap_has_the_grid(tiny, make_steerer, run):
    pipe, site = tiny("sd"), "unet.mid_block"
    steerer = make_steerer(pipe, site)
    with steerer.watch(pipe) as plain:
        run(pipe, steps=1)
    with steerer.attach(pipe, {3: Clamp(4.0)}), steerer.watch(pipe, latents=[3, 7]) as codes:
        steered = run(pipe, steps=1)
    with steerer.attach(pipe, {3: Clamp(4.0)}):
        assert torch.equal(run(pipe, steps=1), steered)
    assert codes.passes[0].values.shape[-1] == 2
    for latent in (3, 7):
        torch.testing.assert_close(codes.heatmap(latent, row=1), plain.heatmap(latent, row=1))
    assert plain.heatmap(3).shape == (4, 4)
    by_hand = plain.passes[0].of(3)[plain.passes[0].rows("conditional")[0]].reshape(4, 4)
    torch.testing.assert_close(plain.heatmap(3), by_hand)
    sums = {
        latent: sum(float(one.of(latent)[one.rows("conditional")].sum()) for one in plain.passes)
        for latent in range(48)
    }
    latent, value = plain.strongest(1)[0]
    assert value == pytest.approx(max(sums.values()))
    assert sums[latent] == max(sums.values())


def test_watching_refuses_what_it_cannot_do(tiny, make_steerer, run):
    pipe = tiny("sd")
    steerer = make_steerer(pipe, "unet.mid_block")
    with pytest.raises(InputError, match="latent 48 is out of range"), steerer.watch(pipe, latents=[48]):
        pass
    with pytest.raises(InputError, match="max_bytes is 4000"), steerer.watch(pipe, max_bytes=4000):
        run(pipe)
    with steerer.watch(pipe, latents=[1]) as codes:
        run(pipe)
    for call, message in [
        (lambda: codes.heatmap(2), "latent 2 was not watched; watched: 1"),
        (lambda: codes.heatmap(1, row=9), "row is 9; the conditional branch has 2 rows"),
        (lambda: codes.strongest(branch="both"), "allowed: conditional, unconditional"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
