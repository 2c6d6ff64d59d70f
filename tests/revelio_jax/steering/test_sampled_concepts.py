"""Texts at hook points of the denoiser: encoded from sampled images, and steered."""

import dataclasses

import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.families import BY_NAME
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.steering import attach_vectors
from revelio_jax.steering.latents import find_latents
from revelio_jax.steering.sampled_concepts import IMAGES, watch_passes
from revelio_jax.steering.vectors import difference_of_means
from tests.helpers.steered_pipelines import DENOISER_POINT, ROWS, VIDEO, built, generate
from tests.helpers.steering import TEXT_RULES

SITES = {
    "sd": "unet.up_blocks.0",
    "sdxl": "unet.mid_block",
    "flux": "flux.double.1.image",
    "dit": "dit.block.1",
}
TEXT = {"sd": "red apple", "sdxl": "red apple", "flux": "red apple", "dit": "goldfish"}
SMALL = {"num_inference_steps": 2, "height": 8, "width": 8}


def sampling(family):
    return {"num_inference_steps": 2} if family == "dit" else SMALL


@pytest.mark.parametrize("family", SITES)
def test_both_branches_see_the_same_noisy_images(tiny, family):
    """The arguments of the denoiser differ between the branches by the prompt alone."""
    pipe = tiny(family)
    point, seen = hook_points.resolve(pipe, SITES[family]), {CONDITIONAL: [], UNCONDITIONAL: []}
    texts = [TEXT[family]] * 3
    watch_passes(pipe, point, texts, lambda branch, x: seen[branch].append(x.clone()), sampling(family))
    assert len(seen[CONDITIONAL]) == len(seen[UNCONDITIONAL]) == 2
    for with_prompt, without in zip(*seen.values(), strict=True):
        assert with_prompt.shape == without.shape == (3, with_prompt.shape[1], point.d)
        assert not torch.equal(with_prompt, without)
        assert not torch.equal(with_prompt[0], with_prompt[1])  # each image has its own seed
    again = {CONDITIONAL: [], UNCONDITIONAL: []}
    watch_passes(pipe, point, texts, lambda branch, x: again[branch].append(x.clone()), sampling(family))
    for branch, passes in seen.items():
        assert all(torch.equal(a, b) for a, b in zip(passes, again[branch], strict=True))
    assert not point.module._forward_hooks


def test_codes_are_means_over_images_steps_and_positions(tiny, make_steerer):
    pipe = tiny("sd")
    steerer = make_steerer(pipe, SITES["sd"])
    concept = steerer.encoder.encode(pipe, "red apple", sampling=SMALL)
    point, passes = hook_points.resolve(pipe, steerer.site), {CONDITIONAL: [], UNCONDITIONAL: []}
    for seed in range(IMAGES):
        watch_passes(pipe, point, ["red apple"], lambda branch, x: passes[branch].append(x), SMALL, seed=seed)
    for codes, branch in ((concept.pre_codes, CONDITIONAL), (concept.empty_pre_codes, UNCONDITIONAL)):
        expected = steerer.sae.pre_codes(torch.cat(passes[branch])).mean((0, 1))
        torch.testing.assert_close(codes, expected[None])
    difference = [steerer.sae.codes(torch.cat(passes[branch])).mean((0, 1)) for branch in passes]
    torch.testing.assert_close(concept.learned.difference, (difference[0] - difference[1])[None])
    assert steerer.encoder.encode(pipe, "red apple", sampling=dict(SMALL)) is concept
    assert steerer.encoder.encode(pipe, "red apple", sampling=SMALL | {"num_inference_steps": 3}) is not concept


@pytest.mark.parametrize("family", SITES)
@pytest.mark.parametrize("rule", TEXT_RULES)
def test_a_text_steers_the_denoiser_and_strength_zero_changes_no_bit(tiny, make_steerer, run, family, rule):
    pipe = tiny(family)
    steerer = make_steerer(pipe, SITES[family])
    plain = run(pipe)
    text = TEXT[family]
    # A random network has no latents of the concept, so all latents are passed as its own.
    options = {"learned": {}, "sampling": sampling(family)}
    if rule in ("gated", "swap"):
        own = steerer.encoder.encode(pipe, text, sampling=sampling(family)).learned
        options["learned"] = {text: dataclasses.replace(own, latents=torch.arange(48))}
    with steerer.attach(pipe, {text: 0.0}, rule=rule, **options) as attached:
        assert torch.equal(run(pipe), plain)
        changed = []
        for strength in (-3.0, 3.0):  # swap acts only on one side of its threshold
            attached.set_strength(text, strength)
            changed.append(not torch.equal(run(pipe), plain))
        assert any(changed)
    assert torch.equal(run(pipe), plain)


def test_a_concept_is_encoded_without_other_attachments(tiny, make_steerer):
    pipe = tiny("sd")
    alone = make_steerer(pipe, SITES["sd"]).encoder.encode(pipe, "cat", sampling=SMALL)
    at_text = make_steerer(pipe, "clip.layer.1")
    at_denoiser = make_steerer(pipe, SITES["sd"])
    with at_text.attach(pipe, {"red apple": 5.0}, rule="paper"), at_denoiser.attach(pipe, {3: 5.0}):
        again = make_steerer(pipe, SITES["sd"]).encoder.encode(pipe, "cat", sampling=SMALL)
    assert torch.equal(again.pre_codes, alone.pre_codes)
    assert torch.equal(again.empty_pre_codes, alone.empty_pre_codes)


def test_an_sae_of_differences_encodes_output_minus_input(tiny, make_steerer):
    pipe = tiny("sd")
    steerer = make_steerer(pipe, "unet.mid_block", value="difference")
    point, passes = hook_points.resolve(pipe, "unet.mid_block"), []
    for seed in range(IMAGES):
        watch_passes(
            pipe,
            point,
            ["cat"],
            lambda branch, x: passes.append(x) if branch == CONDITIONAL else None,
            SMALL,
            seed=seed,
            difference=True,
        )
    expected = steerer.sae.pre_codes(torch.cat(passes)).mean((0, 1))
    torch.testing.assert_close(steerer.encoder.encode(pipe, "cat", sampling=SMALL).pre_codes, expected[None])


def test_vectors_of_a_denoiser_steer_as_the_sae_does(tiny, make_steerer, run):
    pipe = tiny("sd")
    steerer = make_steerer(pipe, SITES["sd"])
    concept = steerer.vectors(pipe, "red apple", sampling=SMALL)
    assert concept.directions[steerer.site].shape == (1, 16)
    with attach_vectors(pipe, concept, 2.0):
        by_vectors = run(pipe)
    with steerer.attach(pipe, {"red apple": 2.0}, rule="contrast", sampling=SMALL):
        torch.testing.assert_close(run(pipe), by_vectors)


def test_latents_for_a_text_are_ordered_by_their_difference_to_the_empty_prompt(tiny, make_steerer):
    pipe = tiny("sd")
    steerer = make_steerer(pipe, SITES["sd"])
    concept = steerer.encoder.encode(pipe, "red apple", sampling=SMALL)
    rows = steerer.latents_for(pipe, "red apple", top=5, sampling=SMALL)
    more = (concept.pre_codes - concept.empty_pre_codes)[0]
    assert [row["latent"] for row in rows] == more.argsort(descending=True, stable=True)[:5].tolist()
    assert {(row["position"], row["token"]) for row in rows} == {(-1, "")}


def test_a_concept_of_a_denoiser_is_learned_from_labeled_prompts(tiny, make_steerer):
    """It is the mean code of images with the concept minus the mean code of images without it."""
    pipe = tiny("sd")
    steerer = make_steerer(pipe, SITES["sd"])
    with_concept, without = ["red apple", "a red apple"], ["cat", "a cat"]
    learned, rows = find_latents(pipe, steerer.site, steerer.sae, with_concept, without, 1.01, 8, SMALL)
    assert learned.difference.shape == (1, 48)
    assert 0 < len(rows) <= 8
    assert all(row["share_with"] >= 1.01 * row["share_without"] for row in rows)
    means = difference_of_means(pipe, steerer.site, with_concept, without, sampling=SMALL)
    point, activations = hook_points.resolve(pipe, steerer.site), []
    for prompts in (with_concept, without):
        passes = []
        watch_passes(pipe, point, prompts, lambda b, x: passes.append(x) if b == CONDITIONAL else None, SMALL)  # noqa: B023
        activations.append(torch.cat(passes))
    torch.testing.assert_close(
        means.directions[point.name], (activations[0].mean((0, 1)) - activations[1].mean((0, 1)))[None]
    )
    codes = [steerer.sae.codes(x).mean((0, 1)) for x in activations]
    torch.testing.assert_close(learned.difference, (codes[0] - codes[1])[None])
    with steerer.attach(pipe, {"apple": -1.0}, learned={"apple": learned}):
        pass


def test_a_text_that_cannot_be_sampled_is_refused(tiny, make_steerer):
    pipe = tiny("sd")
    steerer = make_steerer(pipe, SITES["sd"])
    with pytest.raises(InputError, match=r"guidance_scale'\] is 1.0; it must be above 1"):
        steerer.attach(pipe, {"cat": 1.0}, sampling={"guidance_scale": 1.0})
    with pytest.raises(InputError, match="unknown class"):
        make_steerer(tiny("dit"), SITES["dit"]).attach(tiny("dit"), {"unicorn": 1.0})
    learned = make_steerer(pipe, "clip.layer.1").encoder.encode(pipe, "cat").learned
    with pytest.raises(InputError, match="belongs to a text encoder"):
        steerer.attach(pipe, {"cat": 1.0}, learned={"cat": learned}, sampling=SMALL)


@pytest.mark.parametrize("name", ["LatentConsistencyModelPipeline", "FluxPipeline"])
def test_without_an_unconditional_pass_images_of_the_empty_prompt_take_its_place(tiny, make_steerer, name, monkeypatch):
    row = ROWS[name]
    pipe, site = built(name, tiny(row.family)), DENOISER_POINT[row.family]
    steerer = make_steerer(pipe, site)
    sampling = dict(SMALL)
    if name == "FluxPipeline":  # as a pipeline without true_cfg_scale runs
        monkeypatch.setattr(
            type(BY_NAME["flux"]),
            "reading_arguments",
            lambda self, pipe, prompts: {
                "prompt": prompts,
                "max_sequence_length": 10,
                "output_type": "latent",
            },
        )
    concept = steerer.encoder.encode(pipe, "red apple", sampling=sampling)
    assert concept.pre_codes.isfinite().all()
    assert concept.empty_pre_codes.isfinite().all()
    assert (concept.pre_codes != concept.empty_pre_codes).any()
    assert concept.learned.difference.isfinite().all()
    with steerer.attach(pipe, {"red apple": 1.0}, sampling=sampling):
        assert generate(pipe, row).isfinite().all()


@pytest.mark.parametrize("name", [name for name in ROWS if "IP-Adapter" not in name])
def test_a_text_is_encoded_by_a_text_to_image_pipeline_of_the_components(tiny, make_steerer, name):
    row = ROWS[name]
    pipe, site = built(name, tiny(row.family)), DENOISER_POINT[row.family]
    steerer = make_steerer(pipe, site)
    if row.samples_text:
        concept = steerer.encoder.encode(pipe, "red apple", sampling=SMALL | VIDEO if row.repeats > 1 else SMALL)
        assert concept.pre_codes.isfinite().all()
        assert (concept.pre_codes != concept.empty_pre_codes).any()
        return
    with pytest.raises(InputError, match="cannot sample images of a text alone"):
        steerer.attach(pipe, {"red apple": 5.0}, sampling=SMALL)


def test_an_ip_adapter_needs_its_image(tiny, make_steerer):
    name = "StableDiffusionPipeline with an IP-Adapter"
    row = ROWS[name]
    pipe = built(name, tiny("sd"))
    steerer = make_steerer(pipe, "unet.mid_block")
    with pytest.raises(InputError, match="sampling needs ip_adapter_image"):
        steerer.attach(pipe, {"red apple": 5.0}, sampling=SMALL)
    embeddings = {"ip_adapter_image_embeds": [row.call["ip_adapter_image_embeds"][0][::2]]}
    with steerer.attach(pipe, {"red apple": 5.0}, sampling=SMALL | embeddings, rule="paper") as attached:
        generate(pipe, row)
        assert attached.report()["unet.mid_block"].relative_change > 0
