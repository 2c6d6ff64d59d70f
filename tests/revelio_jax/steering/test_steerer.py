"""Steering the shipped miniature: exact, on every call, and without a trace after the block."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.sampling import sample
from revelio_jax.steering import Steerer
from revelio_jax.steering.learned_concepts import LearnedConcept
from tests.helpers.steering import TEXT_RULES, record_outputs

PROMPTS = ["glossy 3d emoji of red apple", "flat emoji of tiger"]
CONCEPT = "glossy 3d"
SETTINGS = {"steps": 2, "guidance": 2.5, "height": 32, "width": 32, "batch_size": 8}


def images(pipe, prompts=PROMPTS, **settings) -> np.ndarray:
    return sample(pipe, prompts, [3] * len(prompts), **{**SETTINGS, **settings}).images


@pytest.fixture
def steerer(sae_folder) -> Steerer:
    return Steerer.from_pretrained(sae_folder)


@pytest.fixture
def plain(pipe) -> np.ndarray:
    return images(pipe)


@pytest.mark.parametrize("rule", TEXT_RULES)
def test_strength_zero_is_bit_identical(pipe, steerer, plain, rule):
    with steerer.attach(pipe, {CONCEPT: 0.0}, rule=rule):
        np.testing.assert_array_equal(images(pipe), plain)


@pytest.mark.parametrize("rule", TEXT_RULES)
def test_every_call_is_steered_and_the_pipeline_is_restored_after_the_block(pipe, steerer, plain, rule):
    hooks = len(hook_points.resolve(pipe, steerer.site).module._forward_hooks)
    with steerer.attach(pipe, {CONCEPT: -1.0}, rule=rule):
        first, second = images(pipe), images(pipe)
    assert (first != plain).any()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(images(pipe), plain)
    assert type(pipe) is StableDiffusionPipeline
    assert len(hook_points.resolve(pipe, steerer.site).module._forward_hooks) == hooks


def test_the_pipeline_is_restored_after_an_error_in_the_block(pipe, steerer, plain):
    with contextlib.suppress(ZeroDivisionError), steerer.attach(pipe, {CONCEPT: -1.0}):
        raise ZeroDivisionError
    np.testing.assert_array_equal(images(pipe), plain)


def test_auto_swaps_learned_concepts_and_contrasts_other_texts(pipe, steerer):
    T, F = pipe.tokenizer.model_max_length, steerer.sae.n_latents
    difference = torch.randn(T, F, generator=torch.Generator().manual_seed(0))
    learned = {"flat": LearnedConcept(torch.arange(F), difference, -1.0)}  # every prompt has the concept
    concepts = {"flat": -1.0, CONCEPT: -0.5, 3: 0.25}

    def encode(attached):
        with attached, record_outputs(pipe, steerer.site) as passes:
            pipe.encode_prompt(PROMPTS, "cpu", 1, True)
        return list(passes)

    plain = encode(contextlib.nullcontext())
    steered = encode(steerer.attach(pipe, concepts, learned=learned))
    contrast_TD = steerer.vectors(pipe, CONCEPT, rule="contrast").directions[steerer.site]
    latent = steerer.sae.codes(plain[0])[..., 3, None] * steerer.sae.W_dec_FD[3]
    wanted = plain[0] - steerer.sae.directions(difference) - 0.5 * contrast_TD + 0.25 * latent
    torch.testing.assert_close(steered[0], wanted)
    torch.testing.assert_close(steered[1], plain[1] + 0.5 * contrast_TD)


@pytest.mark.parametrize(("guidance", "negative"), [(2.5, True), (2.5, False), (1.0, True)])
@pytest.mark.parametrize("negative_prompt", [None, "red"])
def test_the_negative_prompt_changes_by_the_opposite_vector(pipe, steerer, guidance, negative, negative_prompt):
    strength = -0.7

    def encode(attached):
        with attached, record_outputs(pipe, steerer.site) as passes:
            pipe.encode_prompt(PROMPTS, "cpu", 1, guidance > 1, negative_prompt and [negative_prompt] * 2)
        return list(passes)

    before = encode(contextlib.nullcontext())
    after = encode(steerer.attach(pipe, {CONCEPT: strength}, rule="paper", negative_branch=negative))
    v_TD = steerer.sae.directions(steerer.encoder.encode(pipe, CONCEPT).pre_codes)
    changes = [strength, -strength if negative else 0.0][: len(before)]
    assert len(before) == len(after) == (2 if guidance > 1 else 1)
    for plain, steered, change in zip(before, after, changes, strict=True):
        torch.testing.assert_close(steered, plain + change * v_TD)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_encoding_the_branches_separately_changes_no_bit(pipe, steerer, guided, n):
    wanted = pipe.encode_prompt(PROMPTS, "cpu", n, guided, ["", "red"])
    with steerer.attach(pipe, {CONCEPT: 0.0}):
        encoded = pipe.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=n,
                                 do_classifier_free_guidance=guided, negative_prompt=["", "red"])  # fmt: skip
    assert torch.equal(encoded[0], wanted[0])
    assert encoded[1] is None if wanted[1] is None else torch.equal(encoded[1], wanted[1])


def test_prompt_embeddings_are_refused(pipe, steerer):
    embeddings, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
    with steerer.attach(pipe, {CONCEPT: -1.0}), pytest.raises(ValueError, match="prompt_embeds"):
        pipe(prompt_embeds=embeddings, num_inference_steps=1, guidance_scale=1.0, height=32, width=32)


def test_two_attachments_add_up_and_detach_in_any_order(pipe, steerer, plain):
    with steerer.attach(pipe, {"flat": 0.5, CONCEPT: -0.5}, rule="contrast"):
        together = images(pipe)
    first = steerer.attach(pipe, {"flat": 0.5}, rule="contrast")
    second = steerer.attach(pipe, {CONCEPT: -0.5}, rule="contrast")
    apart = images(pipe)
    first.remove()
    first.remove()
    only_second = images(pipe)
    second.remove()
    assert np.abs(together.astype(int) - apart).max() <= 1  # the sums are rounded in different orders
    assert (only_second != apart).any()
    np.testing.assert_array_equal(images(pipe), plain)


def test_strength_can_change_between_images(pipe, steerer, plain):
    with steerer.attach(pipe, {CONCEPT: -1.0}, rule="contrast") as attached:
        strong = images(pipe)
        attached.set_strength(CONCEPT, 0.0)
        np.testing.assert_array_equal(images(pipe), plain)
        attached.set_strength(CONCEPT, -1.0)
        np.testing.assert_array_equal(images(pipe), strong)
        with pytest.raises(InputError, match="attached: glossy 3d"):
            attached.set_strength("flat", 1.0)


def test_a_concept_is_encoded_once(pipe, steerer):
    concept = steerer.encoder.encode(pipe, CONCEPT)
    with record_outputs(pipe, steerer.site) as passes, steerer.attach(pipe, {CONCEPT: -1.0}):
        pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    assert len(passes) == 2  # the prompt and the negative prompt, but not the concept
    assert steerer.encoder.encode(pipe, CONCEPT) is concept
    learned = steerer.encoder.encode(pipe, CONCEPT, concept.learned)  # learned from other prompts, so another concept
    assert learned.learned is concept.learned
    assert steerer.encoder.encode(pipe, CONCEPT) is concept


def test_half_precision_stays_and_the_sae_computes_in_float32(pipe, steerer):
    half = pipe.components | {"text_encoder": type(pipe.text_encoder)(pipe.text_encoder.config).to(torch.bfloat16)}
    halved = type(pipe)(**half, requires_safety_checker=False)
    with steerer.attach(halved, {CONCEPT: -1.0}, rule="contrast"):
        embeddings, _ = halved.encode_prompt(PROMPTS, "cpu", 1, False)
    assert embeddings.dtype == torch.bfloat16
    assert steerer.encoder.encode(halved, CONCEPT).pre_codes.dtype == torch.float32


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "strong", True, None])
def test_a_strength_that_is_not_a_finite_number_is_refused(pipe, steerer, strength):
    with pytest.raises(InputError, match="finite number"):
        steerer.attach(pipe, {CONCEPT: strength})
    assert type(pipe) is StableDiffusionPipeline


def test_numbers_of_numpy_are_accepted(pipe, steerer, plain):
    latent = int(steerer.sae.codes(steerer_rows(pipe, steerer))[0].amax(0).argmax())
    with steerer.attach(pipe, {latent: -0.5}):
        wanted = images(pipe)
    with steerer.attach(pipe, {np.int64(latent): np.float32(-0.5)}) as attached:
        np.testing.assert_array_equal(images(pipe), wanted)
        attached.set_strength(latent, np.float64(0))
        np.testing.assert_array_equal(images(pipe), plain)


def steerer_rows(pipe, steerer) -> torch.Tensor:
    with record_outputs(pipe, steerer.site) as passes:
        pipe.encode_prompt(PROMPTS, "cpu", 1, False)
    return passes[0]


@pytest.mark.parametrize("concept", ["", " ", True, 3.5, None, (1, 2)])
def test_a_key_that_is_not_a_concept_is_refused(pipe, steerer, concept):
    with pytest.raises(InputError, match=r"a concept is .* it must be a text, the number of a latent"):
        steerer.attach(pipe, {concept: -1.0})


def test_malformed_arguments_are_refused(pipe, steerer):
    other = LearnedConcept(torch.tensor([1]), torch.zeros(pipe.tokenizer.model_max_length, 7), 0.0)
    with pytest.raises(InputError, match=r"learned\['flat'\] has 7 latents; it must have 64"):
        steerer.attach(pipe, {"flat": -1.0}, learned={"flat": other})
    with pytest.raises(InputError, match="negative_branch is 'yes'"):
        steerer.attach(pipe, {"flat": -1.0}, negative_branch="yes")
    with pytest.raises(InputError, match="it must map concepts to strengths"):
        steerer.attach(pipe, ["flat"])
    assert type(pipe) is StableDiffusionPipeline


def test_an_sae_for_another_model_is_refused(pipe, steerer):
    narrow = dataclasses.replace(steerer.sae, W_dec_FD=steerer.sae.W_dec_FD[:, :64])
    with pytest.raises(InputError, match="another model"):
        Steerer(narrow).attach(pipe, {CONCEPT: -1.0})
    elsewhere = dataclasses.replace(steerer.sae, metadata={"site": "clip.layer.9"})
    with pytest.raises(InputError, match=r"clip\.layer\.0-3"):
        Steerer(elsewhere).attach(pipe, {CONCEPT: -1.0})


def test_a_pipeline_of_another_name_is_refused_without_other_model(pipe, steerer, monkeypatch):
    there = dataclasses.replace(steerer.sae, metadata=steerer.sae.metadata | {"model_id": "owner/other"})
    with pytest.raises(InputError, match=r"trained on 'owner/other', this pipeline is .*other_model=True"):
        Steerer(there).attach(pipe, {CONCEPT: -1.0})
    with Steerer(there).attach(pipe, {CONCEPT: -1.0}, other_model=True):
        pass
    # A local copy, an id with a new owner, the hub's cache.
    for name in ("/models/other", "new-owner/Other", "~/hub/models--owner--other/snapshots/0af3"):
        monkeypatch.setitem(pipe.config, "_name_or_path", name)
        monkeypatch.setattr(type(pipe), "name_or_path", name)
        with Steerer(there).attach(pipe, {CONCEPT: -1.0}):
            pass


def test_an_unknown_rule_is_refused_with_the_allowed_ones(pipe, steerer):
    with pytest.raises(InputError, match="paper, contrast, gated, swap, transport"):
        steerer.attach(pipe, {CONCEPT: -1.0}, rule="magic")
