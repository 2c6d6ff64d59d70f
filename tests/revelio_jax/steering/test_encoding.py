"""Prompts encoded outside of the pipeline's call: steered under attached.encoding, refused if they were not."""

import pytest
import torch
from compel import CompelForSD, CompelForSDXL

from revelio_jax.errors import InputError
from tests.helpers.pipelines import WIDTH
from tests.helpers.steered_pipelines import PROMPTS

CONCEPT = "red apple"
CALL = {"num_inference_steps": 2, "height": 8, "width": 8, "output_type": "latent"}


def images(pipe, **call):
    generator = [torch.Generator().manual_seed(i) for i in range(len(call["prompt_embeds"]))]
    return pipe(**CALL | call, generator=generator).images


def encoded(pipe, text, branch, attached):
    """Return embeddings made by hand, as a user would."""
    ids = pipe.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with attached.encoding(branch), torch.no_grad():
        return torch.cat([pipe.text_encoder(ids[:1])[0], pipe.text_encoder(ids[1:])[0]]) * 1.0


def test_embeddings_made_by_hand_are_steered_like_the_prompt(tiny, make_steerer):
    pipe = tiny("sd")
    negative = ["", ""]
    with make_steerer(pipe, "clip.layer.1").attach(pipe, {CONCEPT: 1.0}, rule="paper") as attached:
        generator = [torch.Generator().manual_seed(i) for i in range(2)]
        expected = pipe(PROMPTS, negative_prompt=negative, generator=generator, **CALL).images
        embeddings = encoded(pipe, PROMPTS, "conditional", attached)
        negative_embeddings = encoded(pipe, negative, "unconditional", attached)
        made = images(pipe, prompt_embeds=embeddings, negative_prompt_embeds=negative_embeddings)
    torch.testing.assert_close(made, expected)


def test_foreign_embeddings_are_refused(tiny, make_steerer):
    pipe = tiny("sd")
    foreign = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    steerer = make_steerer(pipe, "clip.layer.1")
    with steerer.attach(pipe, {CONCEPT: 1.0}, rule="paper") as attached:
        with pytest.raises(InputError, match="prompt_embeds cannot be steered, because it was not encoded with"):
            images(pipe, prompt_embeds=foreign)
        embeddings = encoded(pipe, PROMPTS, "conditional", attached)
        with pytest.raises(InputError, match="negative_prompt_embeds cannot be steered"):
            images(pipe, prompt_embeds=embeddings, negative_prompt_embeds=foreign)
        with pytest.raises(InputError, match="prompt_embeds was encoded as the unconditional branch"):
            images(pipe, prompt_embeds=encoded(pipe, PROMPTS, "unconditional", attached))
        attached.set_strength(CONCEPT, 2.0)
        with pytest.raises(InputError, match="prompt_embeds was encoded with other strengths"):
            images(pipe, prompt_embeds=embeddings)
        attached.set_strength(CONCEPT, 0.0)
        images(pipe, prompt_embeds=foreign)
    with steerer.attach(pipe, {CONCEPT: -1.0}, rule="swap"):  # does not steer the unconditional branch
        embeddings = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]
        images(pipe, prompt_embeds=embeddings, negative_prompt_embeds=foreign)


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_embeddings_of_encode_prompt_are_accepted(tiny, make_steerer, family):
    pipe = tiny(family)
    site = {"sd": "clip.layer.1", "sdxl": "clip_l.layer.1", "flux": "t5.block.1"}[family]
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    length = {"max_sequence_length": 10} if family == "flux" else {}
    with make_steerer(pipe, site).attach(pipe, {CONCEPT: 1.0}, rule="paper") as attached:
        generator = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
        expected = pipe(PROMPTS, generator=generator, **CALL, **length).images
        if family == "flux":
            text, pooled, _ = pipe.encode_prompt(PROMPTS, None, "cpu", **length)
            call = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
        else:
            parts = pipe.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
            call = dict(zip(names, parts, strict=False))
        passes = attached.report()[site].passes
        torch.testing.assert_close(images(pipe, **call), expected)
        assert attached.report()[site].passes == passes  # the call encoded nothing


def test_compel_weights_prompts_under_encoding(tiny, make_steerer):
    pipe = tiny("sd")
    compel = CompelForSD(pipe)
    prompt = ["a flat emoji of (cat)1.5", "a (glossy 3d)0.6 emoji of red apple"]
    plain = compel(prompt)
    plain_images = images(pipe, prompt_embeds=plain.embeds, negative_prompt_embeds=plain.negative_embeds)
    with make_steerer(pipe, "clip.layer.1").attach(pipe, {CONCEPT: 1.0}, rule="paper") as attached:
        with pytest.raises(InputError, match="prompt_embeds cannot be steered"):
            images(pipe, prompt_embeds=plain.embeds, negative_prompt_embeds=plain.negative_embeds)
        with attached.encoding("conditional"):
            positive = compel(prompt).embeds
        with attached.encoding("unconditional"):
            negative = compel(["", ""]).embeds
        steered = images(pipe, prompt_embeds=positive, negative_prompt_embeds=negative)
        attached.set_strength(CONCEPT, 0.0)
        with attached.encoding("conditional"):
            assert torch.equal(compel(prompt).embeds, plain.embeds)
    assert (positive != plain.embeds).any()
    assert (steered != plain_images).any()
    assert torch.equal(compel(prompt).embeds, plain.embeds)


def test_compel_works_with_sdxl(tiny, make_steerer):
    pipe = tiny("sdxl")
    compel = CompelForSDXL(pipe)

    def arguments(made):
        return {"guidance_scale": 1.0, "prompt_embeds": made.embeds, "pooled_prompt_embeds": made.pooled_embeds}

    plain = compel(PROMPTS)
    plain_images = images(pipe, **arguments(plain))
    with make_steerer(pipe, "clip_l.layer.1").attach(pipe, {CONCEPT: 1.0}, rule="paper", negative_branch=False) as on:
        with on.encoding("conditional"):
            made = compel(PROMPTS)
        changed = (made.embeds != plain.embeds).flatten(0, 1).any(0)
        assert changed[:WIDTH].all()  # the columns of the steered encoder
        assert not changed[WIDTH:].any()
        assert (images(pipe, **arguments(made)) != plain_images).any()


def test_encoding_refuses_what_it_cannot_do(tiny, make_steerer):
    pipe = tiny("sdxl")
    attached = make_steerer(pipe, "clip_l.layer.1").attach(pipe, {CONCEPT: 1.0}, rule="paper")
    with pytest.raises(InputError, match="branch is 'negative'; allowed: conditional, unconditional"):
        attached.encoding("negative")
    with pytest.raises(InputError, match="the text_encoder did not run in the block"), attached.encoding("conditional"):
        pass
    attached.remove()
    with pytest.raises(InputError, match="were removed"):
        attached.encoding("conditional")
    with (
        make_steerer(pipe, "unet.down_blocks.1.attentions.0").attach(pipe, {3: 1.0}) as attached,
        pytest.raises(InputError, match="is in the denoiser"),
    ):
        attached.encoding("conditional")
    with (
        make_steerer(pipe, "clip_l.layer.1+clip_g.layer.1").attach(pipe, {CONCEPT: -1.0}, rule="gated") as attached,
        pytest.raises(InputError, match="one code for both encoders"),
    ):
        attached.encoding("conditional")
