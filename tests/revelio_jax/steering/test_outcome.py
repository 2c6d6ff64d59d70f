"""A call in which steering did not happen, or not everywhere, is an error; a call in which it did has a report."""

import copy
import types

import diffusers
import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.steering import Clamp
from revelio_jax.steering.state import SteeringState
from tests.helpers.steered_pipelines import DENOISER_POINT, NEGATIVE, PROMPTS, ROWS, built, generate
from tests.helpers.steering import record_outputs

CONCEPT = "red apple"
ON = {"rule": "paper", "negative_branch": True}


class Cached(diffusers.StableDiffusionPipeline):
    """Passes on embeddings that it made before, so that its text encoder does not run."""

    @torch.no_grad()
    def __call__(self, prompt, **options):
        zeros = torch.zeros(len(prompt), self.tokenizer.model_max_length, self.text_encoder.config.hidden_size)
        return super().__call__(prompt_embeds=zeros, negative_prompt_embeds=zeros + 1, **options)


class Weighted(diffusers.StableDiffusionPipeline):
    """Encodes the words of a prompt without their weights."""

    @torch.no_grad()
    def __call__(self, prompt, **options):
        texts = [text.replace("(", "").replace(":1.5)", "") for text in prompt]
        ids = self.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        embeddings = self.text_encoder(ids)[0]
        return super().__call__(prompt_embeds=embeddings, negative_prompt_embeds=embeddings * 0, **options)


def own(cls, pipe):
    made = cls(**pipe.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_text_encoder_that_does_not_run_is_an_error(tiny, make_steerer, run):
    pipe = own(Cached, tiny("sd"))
    call = {"num_inference_steps": 1, "height": 8, "width": 8, "output_type": "latent"}
    with make_steerer(pipe, "clip.layer.1").attach(pipe, {CONCEPT: 1.0}, **ON) as attached:
        with pytest.raises(
            InputError, match=r"Cached was not steered correctly at clip\.layer\.1: the text_encoder did"
        ):
            pipe(PROMPTS, **call)
        attached.set_strength(CONCEPT, 0.0)
        pipe(PROMPTS, **call)


def test_a_text_that_is_not_a_prompt_of_the_call_is_an_error(tiny, make_steerer):
    pipe = own(Weighted, tiny("sd"))
    call = {"num_inference_steps": 1, "height": 8, "width": 8, "output_type": "latent"}
    with make_steerer(pipe, "clip.layer.1").attach(pipe, {CONCEPT: 1.0}, **ON):
        pipe(PROMPTS, **call)
        with pytest.raises(InputError, match="Weighted runs its text_encoder on a text that is neither the prompt nor"):
            pipe(["a (flat:1.5) emoji of cat"], **call)


def test_timesteps_that_no_step_runs_are_an_error(tiny, make_steerer, run):
    pipe = tiny("sd")
    with (
        make_steerer(pipe, "unet.mid_block").attach(pipe, {3: Clamp(4.0)}, steps=(1000, 995)),
        pytest.raises(InputError, match=r"the call ran timesteps 501 to 1, where steps=\(1000, 995\) does not steer"),
    ):
        run(pipe, steps=2)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_module_that_does_not_run_in_every_pass_is_an_error(tiny, make_steerer, run, family):
    pipe, site = tiny(family), DENOISER_POINT[family]
    with make_steerer(pipe, site).attach(pipe, {3: Clamp(4.0)}) as attached:
        module = attached.points[0].module
        original, count = type(module).__call__, [0]

        class Skipping(type(module)):
            def __call__(self, *args, **kwargs):
                count[0] += 1
                return original(self, *args, **kwargs) if count[0] == 1 else self.forward(*args, **kwargs)

        module.__class__ = Skipping
        try:
            with pytest.raises(InputError, match=r"its module ran 1 times in [24] passes"):
                run(pipe, steps=2)
        finally:
            module.__class__ = Skipping.__mro__[1]


@pytest.mark.parametrize(("family", "site"), [("sd", "clip.layer.1"), ("sd", "unet.mid_block"), ("flux", "t5.block.1")])
def test_activations_that_are_not_finite_are_an_error(tiny, make_steerer, run, family, site):
    pipe = tiny(family)
    concept = 3 if site.startswith("unet") else CONCEPT
    steerer = make_steerer(pipe, site)
    pipe.to(torch.float16)
    try:
        with steerer.attach(pipe, {concept: Clamp(1e9) if concept == 3 else 1e9}) as attached:
            with pytest.raises(InputError, match="activations are not finite; use a smaller strength"):
                run(pipe)
            attached.set_strength(concept, Clamp(1.0) if concept == 3 else 0.5)
            run(pipe)
    finally:
        pipe.to(torch.float32)


def test_a_report_has_passes_rows_and_the_relative_change(tiny, make_steerer, run):
    pipe, site = tiny("sd"), "unet.mid_block"
    steerer = make_steerer(pipe, site)
    with record_outputs(pipe, site) as plain:
        run(pipe, steps=1)
    with steerer.attach(pipe, dict.fromkeys(range(48), -1.0)) as attached:
        assert attached.report()[site].passes == 0
        with record_outputs(pipe, site) as steered:
            run(pipe, steps=1)
        report = attached.report()[site]
        assert (report.passes, report.rows) == (1, 2)
        expected = (steered[0] - plain[0])[2:].norm() / plain[0][2:].norm()
        assert report.relative_change == pytest.approx(float(expected), rel=1e-4)
        run(pipe, steps=3)
        report = attached.report()[site]
        assert (report.passes, report.rows) == (4, 8)


def test_another_pipeline_of_the_components_alone_is_an_error(tiny, make_steerer, run):
    pipe = tiny("sd")
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    for site, concept in (("clip.layer.1", CONCEPT), ("unet.mid_block", 3)):
        steerer = make_steerer(pipe, site)
        call = {"image": torch.rand(1, 3, 8, 8), "num_inference_steps": 2, "output_type": "latent"}
        message = "this StableDiffusionPipeline was not called, but its "
        with pytest.raises(InputError, match=message), steerer.attach(pipe, {concept: -1.0}):
            other(PROMPTS[0], **call)
        with steerer.attach(pipe, {concept: -1.0}):
            run(pipe)
            other(PROMPTS[0], **call)
        with steerer.attach(pipe, {concept: -1.0}):
            pass


def test_an_interrupted_call_is_not_an_error(tiny, make_steerer, run):
    pipe = tiny("sd")

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    with make_steerer(pipe, "unet.mid_block").attach(pipe, {3: Clamp(4.0)}, steps=(400, 0)) as attached:
        run(pipe, callback_on_step_end=stop)
        assert attached.report()["unet.mid_block"].passes == 0
        run(pipe)
        assert attached.report()["unet.mid_block"].passes == 1


def test_rescaled_guidance_and_several_images_of_a_prompt_steer_the_prompt_only(tiny, make_steerer, run):
    pipe, site = tiny("sd"), "unet.mid_block"
    with make_steerer(pipe, site).attach(pipe, {3: Clamp(4.0)}) as attached:
        run(pipe, n=3, steps=2, guidance_rescale=0.7)
        report = attached.report()[site]
    assert (report.passes, report.rows) == (2, 2 * 3 * len(PROMPTS))


def test_guidance_that_ends_during_the_call_steers_the_prompt_only(tiny, make_steerer, run):
    pipe, site = tiny("sd"), "unet.mid_block"

    def without_guidance(pipe, step, timestep, tensors):
        if step > 0:
            return {}
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]}

    changes = {"callback_on_step_end": without_guidance, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with make_steerer(pipe, site).attach(pipe, {3: Clamp(4.0)}) as attached:
        run(pipe, steps=3, **changes)
        assert attached.report()[site].rows == 6


def test_embeddings_that_a_callback_makes_up_are_an_error(tiny, make_steerer, run):
    pipe = tiny("sd")

    def change(pipe, step, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"] * 0.5}

    changes = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with (
        make_steerer(pipe, "unet.mid_block").attach(pipe, {3: Clamp(4.0)}),
        pytest.raises(InputError, match="passes its unet embeddings that belong neither to the prompt nor"),
    ):
        run(pipe, steps=3, **changes)


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "StableDiffusionPAGPipeline", "FluxPipeline, true_cfg_scale"]
)
def test_equal_prompts_are_told_apart_by_the_order_that_a_class_fixes(tiny, make_steerer, name):
    row = ROWS[name]
    pipe, site = built(name, tiny(row.family)), DENOISER_POINT[row.family]
    for prompts, negative in ((["", ""], ["", ""]), (["", "cat"], ["", ""])):
        call = {"prompt": prompts, "negative_prompt": negative, "num_inference_steps": 1}
        with record_outputs(pipe, site) as passes:
            generate(pipe, row, **call)
            half = len(passes)
            with make_steerer(pipe, site).attach(pipe, dict.fromkeys(range(48), -1.0)):
                generate(pipe, row, **call)
        changed = (torch.cat(passes[half:]) != torch.cat(passes[:half])).flatten(1).any(1)
        assert changed.tolist() == [group == "P" for group in row.groups for _ in range(2)]


def test_equal_prompts_are_an_error_where_the_order_is_unknown(tiny, make_steerer):
    row = ROWS["FluxImg2ImgPipeline"]
    pipe = built("FluxImg2ImgPipeline", tiny("flux"))
    with make_steerer(pipe, "flux.double.0.image").attach(pipe, {3: Clamp(4.0)}):
        with pytest.raises(InputError, match="the prompt equals the negative prompt, so the rows of flux"):
            generate(pipe, row, prompt=["", ""], negative_prompt=["", ""])
        generate(pipe, row, prompt=["", "cat"], negative_prompt=NEGATIVE)


def test_a_mask_of_a_cropped_image_is_refused(tiny, make_steerer):
    row = ROWS["StableDiffusionInpaintPipeline"]
    pipe = built("StableDiffusionInpaintPipeline", tiny("sd"))
    with (
        make_steerer(pipe, "unet.mid_block").attach(pipe, {3: Clamp(4.0)}, mask=torch.ones(8, 8)),
        pytest.raises(InputError, match="mask cannot be used with padding_mask_crop"),
    ):
        generate(pipe, row, padding_mask_crop=2)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["FluxKontextPipeline", "FluxKontextInpaintPipeline"])
def test_a_mask_means_the_output_image_and_references_are_left_alone(tiny, make_steerer, name, masked, reference):
    row = ROWS[name]
    pipe, site = built(name, tiny("flux")), "flux.double.0.image"
    area = torch.zeros(8, 8)
    area[:4] = 1
    with record_outputs(pipe, site) as passes:
        generate(pipe, row, num_inference_steps=1)
        half = len(passes)
        limits = {"mask": area} if masked else {}
        steerer = make_steerer(pipe, site)
        with steerer.attach(pipe, dict.fromkeys(range(48), -1.0), reference=reference, **limits):
            generate(pipe, row, num_inference_steps=1)
    changed_T = (passes[half] != passes[0]).any(2).all(0)
    output, kept = changed_T[:16].reshape(4, 4), changed_T[16:]
    assert len(kept) == 16  # the tokens of the reference image
    assert output[:2].all()
    assert output[2:].all() == (not masked)
    assert kept.all() == reference
    assert kept.any() == reference


def test_hook_points_without_references_refuse_them(tiny, make_steerer):
    pipe = tiny("sd")
    with pytest.raises(InputError, match="reference is True; it must be False at unet"):
        make_steerer(pipe, "unet.mid_block").attach(pipe, {3: 1.0}, reference=True)


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusion3Pipeline",
        "PixArtSigmaPipeline",
        "SanaPipeline",
        "Flux2Pipeline",
        "QwenImagePipeline",
    ],
)
def test_pipelines_of_other_families_are_refused_by_name(name, tiny, make_steerer):
    cls = getattr(diffusers, name)
    flux = tiny("flux")
    parts = dict.fromkeys(cls._get_signature_types())
    pipe = object.__new__(cls)
    object.__setattr__(pipe, "_internal_dict", {})
    vars(pipe).update(parts | {"text_encoder": flux.text_encoder_2, "text_encoder_2": flux.text_encoder})
    if "transformer" in parts:
        pipe.transformer = types.SimpleNamespace(config=None)
    with pytest.raises(InputError, match=f"{name} is not a supported pipeline; supported: pipelines with"):
        make_steerer(flux, "t5.block.1").attach(pipe, {CONCEPT: 1.0})


@pytest.mark.parametrize(
    ("family", "site"), [("sd", "unet.mid_block"), ("sd", "clip.layer.1"), ("flux", "flux.single.0.image")]
)
def test_batches_of_one_attachment_may_grow_and_shrink(tiny, make_steerer, run, family, site):
    pipe = tiny(family)
    steerer = make_steerer(pipe, site)
    concepts = {CONCEPT: 1.0} if site.startswith("clip") else {3: 2.0}
    prompts = [PROMPTS[0], "red", "cat", "flat"]
    calls = [(guided, count) for guided in (False, True) for count in (1, 2, 3, 1, 4, 2)]
    with steerer.attach(pipe, concepts):
        seen = [run(pipe, prompts[:count], guided=guided, steps=1) for guided, count in calls]
    for (guided, count), images in zip(calls, seen, strict=True):
        with steerer.attach(pipe, concepts):
            assert torch.equal(run(pipe, prompts[:count], guided=guided, steps=1), images)


def test_a_negative_prompt_for_the_whole_batch_of_flux(tiny, make_steerer):
    pipe = tiny("flux")
    row = ROWS["FluxPipeline, true_cfg_scale"]
    with make_steerer(pipe, "flux.single.0.image").attach(pipe, {3: 2.0}) as attached:
        generate(pipe, row, negative_prompt="red")
        assert attached.report()["flux.single.0.image"].passes > 0


def test_activations_that_the_pipeline_makes_infinite_are_named_so(tiny, make_steerer, run):
    pipe = tiny("sd")
    handle = pipe.unet.conv_in.register_forward_hook(lambda _module, _args, output: output * float("nan"))
    try:
        with (
            make_steerer(pipe, "unet.mid_block").attach(pipe, {3: 2.0}),
            pytest.raises(InputError, match="not finite before steering: the pipeline itself computes them"),
        ):
            run(pipe, steps=1)
    finally:
        handle.remove()


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_component_that_was_replaced_is_an_error(tiny, make_steerer, run, component):
    pipe = tiny("sd")
    before = getattr(pipe, component)
    site = "unet.mid_block" if component == "unet" else "clip.layer.1"
    with make_steerer(pipe, site).attach(pipe, {3: -1.0}):
        setattr(pipe, component, copy.deepcopy(before))
        try:
            with pytest.raises(InputError, match=f"the {component} was replaced after attaching; attach again"):
                run(pipe, steps=1)
        finally:
            setattr(pipe, component, before)


@pytest.mark.parametrize("ramp", [3, None, (1,), (1, 2, 3), "ab", (float("nan"), 1.0)])
def test_a_ramp_is_two_finite_factors(tiny, make_steerer, ramp):
    pipe = tiny("sd")
    with pytest.raises(InputError, match="it must be two finite factors"):
        make_steerer(pipe, "unet.mid_block").attach(pipe, {3: 1.0}, ramp=ramp)


def test_the_state_of_a_pipeline_has_its_name(tiny):
    pipe = tiny("sd")
    assert SteeringState(pipe, type(pipe), None).name == "StableDiffusionPipeline"
