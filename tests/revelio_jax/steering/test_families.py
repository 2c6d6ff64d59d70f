"""Steering tiny pipelines of every family: exact, on every call, each branch separately."""

import copy
import dataclasses

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.steering import Clamp, Steerer
from revelio_jax.steering.rules import change_function, resolve_rule
from tests.helpers.steering import TEXT_RULES, record_outputs

CONCEPT = "red apple"
PROMPTS = ["a flat emoji of cat", "a glossy 3d emoji of red apple"]
TEXT = {
    "sd": ("clip.layer.1",),
    "sdxl": ("clip_l.layer.1+clip_g.layer.1", "clip_g.layer.0"),
    "flux": ("t5.block.1", "clip.layer.0"),
}
DENOISER = {
    "sd": ("unet.mid_block", "unet.up_blocks.1.attentions.0"),
    "sdxl": ("unet.down_blocks.1.attentions.0",),
    "flux": ("flux.double.0.image", "flux.double.0.text", "flux.single.0.image", "flux.single.1.image"),
    "dit": ("dit.block.1",),
}
TEXT_SITES = [(family, site) for family, names in TEXT.items() for site in names]
DENOISER_SITES = [(family, site) for family, names in DENOISER.items() for site in names]


CALLS = {
    "guided": {},
    "unguided": {"guided": False},
    "negative": {"negative": ["red", "flat cat"]},
    "several": {"n": 2, "negative": ["red", "flat cat"]},
    "one prompt": {"prompts": PROMPTS[0]},
}


@pytest.mark.parametrize("rule", TEXT_RULES)
@pytest.mark.parametrize(("family", "site"), TEXT_SITES)
def test_strength_zero_changes_no_bit(tiny, make_steerer, family, site, rule, run):
    pipe = tiny(family)
    steerer = make_steerer(pipe, site)
    for name, call in CALLS.items():
        call = call | {"steps": 1}
        plain = run(pipe, **call)
        with steerer.attach(pipe, {CONCEPT: 0.0}, rule=rule, negative_branch=True):
            assert torch.equal(run(pipe, **call), plain), name


@pytest.mark.parametrize("rule", TEXT_RULES)
@pytest.mark.parametrize(("family", "site"), TEXT_SITES)
def test_every_call_is_steered_and_the_pipeline_is_restored(tiny, make_steerer, family, site, rule, run):
    pipe = tiny(family)
    cls, steerer = type(pipe), make_steerer(pipe, site)
    for name, call in CALLS.items():
        call = call | {"steps": 1}
        plain = run(pipe, **call)
        changed = False
        for strength in (-1.0, 1.0):  # swap acts on prompts with the concept, or on the others
            with steerer.attach(pipe, {CONCEPT: strength}, rule=rule):
                first, second = run(pipe, **call), run(pipe, **call)
            changed = changed or bool((first != plain).any())
            assert torch.equal(first, second), name
            assert torch.equal(run(pipe, **call), plain), name
        assert changed, name
    assert type(pipe) is cls
    assert not [key for key in vars(pipe) if "steer" in key]


@pytest.mark.parametrize("rule", TEXT_RULES)
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_the_shipped_miniatures_are_steered_and_restored(miniature, make_steerer, run, family, rule):
    pipe = miniature(family)
    steerer = make_steerer(pipe, {"sd": "clip.layer.2", "flux": "t5.block.2"}[family])
    call = {"prompts": ["glossy 3d emoji of red apple", "flat emoji of tiger"], "height": 32, "width": 32}
    plain = run(pipe, **call)
    with steerer.attach(pipe, {"glossy 3d": 0.0}, rule=rule) as attached:
        assert torch.equal(run(pipe, **call), plain)
        attached.set_strength("glossy 3d", -1.0)
        steered = run(pipe, **call)
        assert torch.equal(run(pipe, **call), steered)
    assert (steered != plain).any()
    assert torch.equal(run(pipe, **call), plain)


@pytest.mark.parametrize("strength", [-1.0, Clamp(2.0)])
@pytest.mark.parametrize(("family", "site"), DENOISER_SITES)
def test_latents_are_steered_in_the_denoiser(tiny, make_steerer, family, site, strength, run):
    pipe = tiny(family)
    steerer = make_steerer(pipe, site)
    calls = {name: CALLS[name] for name in (["guided", "unguided"] if family == "dit" else CALLS)}
    for name, call in calls.items():
        call = call | {"steps": 1}
        plain = run(pipe, **call)
        with steerer.attach(pipe, dict.fromkeys(range(48), strength)) as attached:
            steered = run(pipe, **call)
            assert (steered != plain).any() or site == "flux.single.1.text", name
            assert torch.equal(run(pipe, **call), steered), name
            for latent in range(48):
                attached.set_strength(latent, 0.0)
            assert torch.equal(run(pipe, **call), plain), name
        assert torch.equal(run(pipe, **call), plain), name


@pytest.mark.parametrize("negative_branch", [False, True])
@pytest.mark.parametrize(("family", "site"), DENOISER_SITES)
def test_only_the_rows_of_the_prompt_are_steered(tiny, make_steerer, family, site, negative_branch, run):
    """In the first step the input of the hook point equals the plain run's, so the change is known."""
    pipe = tiny(family)
    steerer = make_steerer(pipe, site)
    with record_outputs(pipe, site) as outputs:
        run(pipe, steps=1)
        with steerer.attach(pipe, dict.fromkeys(range(48), -1.0), negative_branch=negative_branch):
            run(pipe, steps=1)
    middle = len(outputs) // 2
    plain, steered = torch.cat(outputs[:middle]), torch.cat(outputs[middle:])
    assert len(plain) == 4
    conditional = slice(0, 2) if family in ("dit", "flux") else slice(2, 4)
    change = steered - plain
    reconstructed = steerer.sae.codes(plain) @ steerer.sae.W_dec_FD
    torch.testing.assert_close(change[conditional], -reconstructed[conditional], atol=1e-4, rtol=1e-4)
    change[conditional], reconstructed[conditional] = 0, 0
    torch.testing.assert_close(change, reconstructed * negative_branch, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "site"), [s for s in DENOISER_SITES if s[1] != "unet.mid_block"])
def test_an_sae_of_differences_reads_output_minus_input(tiny, make_steerer, family, site, run):
    pipe = tiny(family)
    steerer = make_steerer(pipe, site, value="difference")
    point, passes = hook_points.resolve(pipe, site), []

    def keep(_module, args, kwargs, output):
        passes.append((point.read_input(args, kwargs).clone(), point.read(output).clone()))

    handle = point.module.register_forward_hook(keep, with_kwargs=True)
    run(pipe, steps=1, guided=False)
    with steerer.attach(pipe, {5: Clamp(3.0)}):
        run(pipe, steps=1, guided=False)
    handle.remove()
    (before, plain), (_, steered) = passes
    z = steerer.sae.codes(plain - before)[..., 5, None]
    torch.testing.assert_close(steered, plain + (3.0 - z) * steerer.sae.W_dec_FD[5], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", TEXT_RULES)
def test_joined_encoders_share_one_change(tiny, make_steerer, rule):
    """The code comes from the plain pass of both encoders, and each encoder gets its own columns of the change."""
    pipe = tiny("sdxl")
    site = "clip_l.layer.1+clip_g.layer.1"
    steerer = make_steerer(pipe, site)
    first, second = site.split("+")
    arguments = {"device": "cpu", "do_classifier_free_guidance": True, "negative_prompt": ["red", "cat"]}
    strength = -0.7 if rule == "gated" else 0.7

    def encode() -> list[torch.Tensor]:
        """Return the joined activations of the last pass of each branch."""
        with record_outputs(pipe, first) as clip_l, record_outputs(pipe, second) as clip_g:
            pipe.encode_prompt(PROMPTS, **arguments)
        outputs = [torch.cat(pair, -1) for pair in zip(clip_l, clip_g, strict=True)]
        return [outputs[len(outputs) // 2 - 1], outputs[-1]]

    plain = encode()
    with steerer.attach(pipe, {CONCEPT: strength}, rule=rule, negative_branch=True):
        steered = encode()
    function = change_function(resolve_rule(rule, None), steerer.sae, steerer.encoder.encode(pipe, CONCEPT))
    for before, after, sign in zip(plain, steered, (1, -1), strict=True):
        torch.testing.assert_close(after, before + function(before, sign * strength), atol=1e-4, rtol=1e-4)


def test_sdxl_keeps_the_zeros_of_an_empty_negative_prompt(tiny, make_steerer):
    pipe = tiny("sdxl")
    steerer = make_steerer(pipe, "clip_l.layer.1")
    with steerer.attach(pipe, {CONCEPT: -1.0}, rule="paper", pooled=True):
        _, negative, _, negative_pooled = pipe.encode_prompt(PROMPTS, device="cpu")
    assert not negative.any()
    assert not negative_pooled.any()


def test_pooled_false_keeps_the_pooled_vector(tiny, make_steerer):
    pipe = tiny("sdxl")
    steerer = make_steerer(pipe, "clip_g.layer.0")
    plain = pipe.encode_prompt(PROMPTS, device="cpu")
    with steerer.attach(pipe, {CONCEPT: 1.0}, rule="paper"):
        steered = pipe.encode_prompt(PROMPTS, device="cpu")
    with steerer.attach(pipe, {CONCEPT: 1.0}, rule="paper", pooled=False):
        left = pipe.encode_prompt(PROMPTS, device="cpu")
    assert torch.equal(left[0], steered[0])
    assert (steered[0] != plain[0]).any()
    assert (steered[2] != plain[2]).any()
    assert torch.equal(left[2], plain[2])


@pytest.mark.parametrize(("family", "site"), [("flux", "t5.block.1"), ("sdxl", "clip_l.layer.1")])
def test_pooled_true_steers_the_pooled_vector_of_another_encoder(tiny, make_steerer, family, site):
    pipe = tiny(family)
    steerer = make_steerer(pipe, site)
    at = 1 if family == "flux" else 2
    arguments = {"device": "cpu"} | ({"max_sequence_length": 10} if family == "flux" else {})

    def pooled(text, **attached):
        if not attached:
            return pipe.encode_prompt(text, **arguments)[at]
        with steerer.attach(pipe, {CONCEPT: -0.5}, rule="paper", **attached):
            return pipe.encode_prompt(text, **arguments)[at]

    plain, empty = pooled(PROMPTS), pooled("")
    direction = pooled(CONCEPT) - empty
    share = ((plain - empty) @ direction[0] / direction.square().sum()).clamp(0, 1)
    assert torch.equal(pooled(PROMPTS, pooled=False), plain)
    assert torch.equal(pooled(PROMPTS, pooled=None), plain)
    torch.testing.assert_close(pooled(PROMPTS, pooled=True), plain - 0.5 * share[:, None] * direction)
    torch.testing.assert_close(pooled(CONCEPT, pooled=True), empty + 0.5 * direction)


def test_the_negative_prompt_of_flux_is_steered_separately(tiny, make_steerer, run):
    pipe = tiny("flux")
    steerer = make_steerer(pipe, "t5.block.1")
    call = {"negative": ["red", "flat cat"], "steps": 1}
    with record_outputs(pipe, "t5.block.1") as plain:
        run(pipe, **call)
    plain_prompt, plain_negative = plain
    for sign in (0, -1):
        attached = steerer.attach(pipe, {CONCEPT: 1.5}, rule="paper", negative_branch=bool(sign))
        with attached, record_outputs(pipe, "t5.block.1") as steered:
            run(pipe, **call)
        v_TD = steerer.sae.directions(steerer.encoder.encode(pipe, CONCEPT).pre_codes)
        prompt, negative = steered
        torch.testing.assert_close(prompt, plain_prompt + 1.5 * v_TD)
        torch.testing.assert_close(negative, plain_negative + sign * 1.5 * v_TD)


def test_a_concept_is_encoded_again_for_another_prompt_length(tiny, make_steerer):
    pipe = tiny("flux")
    steerer = make_steerer(pipe, "t5.block.1")
    for length in (10, 8, 10):
        plain = pipe.encode_prompt(PROMPTS, device="cpu", max_sequence_length=length)[0]
        with steerer.attach(pipe, {CONCEPT: 1.0}, rule="paper"):
            steered = pipe.encode_prompt(PROMPTS, device="cpu", max_sequence_length=length)[0]
        assert steered.shape[1] == length
        assert (steered != plain).any()
    with steerer.attach(pipe, {CONCEPT: 1.0}, rule="paper"):
        again = [pipe.encode_prompt(PROMPTS, device="cpu", max_sequence_length=n)[0] for n in (8, 10)]
    torch.testing.assert_close(again[1], steered)


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_another_pipeline_of_the_same_components_is_not_steered(tiny, make_steerer, family, run):
    pipe = tiny(family)
    options = {"requires_safety_checker": False} if family == "sd" else {}
    other = type(pipe)(**pipe.components, **options)
    other.set_progress_bar_config(disable=True)
    plain = run(pipe)
    text, denoiser = make_steerer(pipe, TEXT[family][0]), make_steerer(pipe, DENOISER[family][0])
    with text.attach(pipe, {CONCEPT: 1.0}, rule="paper"), denoiser.attach(pipe, {3: Clamp(4.0)}):
        steered = run(pipe)
        assert torch.equal(run(other), plain)
        with text.attach(other, {CONCEPT: 0.0}, rule="paper"):
            assert torch.equal(run(other), plain)
            assert torch.equal(run(pipe), steered)
        assert torch.equal(run(pipe), steered)
    assert (steered != plain).any()
    assert torch.equal(run(pipe), plain)


def test_a_steered_pipeline_is_copied_and_saved_unsteered(tiny, make_steerer, run, tmp_path):
    pipe = tiny("sd")
    plain = run(pipe)
    with make_steerer(pipe, "clip.layer.1").attach(pipe, {CONCEPT: 1.0}, rule="paper"):
        steered = run(pipe)
        made = type(pipe)(**pipe.components, requires_safety_checker=False)
        copied = copy.copy(pipe)
        pipe.save_pretrained(tmp_path)
        for other in (made, copied):
            other.set_progress_bar_config(disable=True)
            assert torch.equal(run(other), plain)
        with make_steerer(copied, "clip.layer.1").attach(copied, {CONCEPT: 1.0}, rule="paper"):
            assert torch.equal(run(copied), steered)
        assert torch.equal(run(pipe), steered)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(loaded) is type(pipe) is StableDiffusionPipeline


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_two_steerers_are_independent(tiny, make_steerer, family, run):
    """In any order of attaching and detaching; at a shared hook point each reads the unsteered activations."""
    pipe = tiny(family)
    first, second = make_steerer(pipe, TEXT[family][0]), make_steerer(pipe, TEXT[family][0], k=3)
    call = {"negative": ["red", "flat cat"]}
    plain = run(pipe, **call)
    results = []
    for order in ((first, second), (second, first)):
        attached = [steerer.attach(pipe, {CONCEPT: -1.0}, rule="gated") for steerer in order]
        results.append(run(pipe, **call))
        attached[0].remove()
        alone = run(pipe, **call)
        attached[1].remove()
        with order[1].attach(pipe, {CONCEPT: -1.0}, rule="gated"):
            assert torch.equal(run(pipe, **call), alone)
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
    assert (results[0] != alone).any()
    assert torch.equal(run(pipe, **call), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("family", "site"), [*TEXT_SITES, *DENOISER_SITES])
def test_half_precision_stays_and_the_sae_computes_in_float32(tiny, make_steerer, family, site, dtype, run):
    pipe = tiny(family)
    steerer = make_steerer(pipe, site)
    computed = []
    codes = type(steerer.sae).codes

    class Watched(type(steerer.sae)):
        def codes(self, x):
            z = codes(self, x)
            computed.append(z.dtype)
            return z

    fields = {f.name: getattr(steerer.sae, f.name) for f in dataclasses.fields(steerer.sae)}
    steerer = Steerer(Watched(**fields))
    concept = CONCEPT if site in sum(TEXT.values(), ()) else 5
    pipe.to(dtype)
    try:
        plain = run(pipe)
        with steerer.attach(pipe, {concept: -1.0 if concept == CONCEPT else Clamp(9.0)}) as attached:
            steered = run(pipe)
            attached.set_strength(concept, 0.0)
            assert torch.equal(run(pipe), plain)
    finally:
        pipe.to(torch.float32)
    assert steered.dtype == plain.dtype
    assert (steered != plain).any()
    assert set(computed) == {torch.float32}


def test_wrong_arguments_are_refused_in_one_line(tiny, make_steerer):
    sd, flux = tiny("sd"), tiny("flux")
    steerer = make_steerer(sd, "clip.layer.1")
    for pipe, concepts, options, message in [
        (flux, {CONCEPT: 1.0}, {}, "family sd"),
        (sd, {48: 1.0}, {}, "0-47"),
        (sd, {CONCEPT: Clamp(1.0)}, {}, "only for the number of a latent"),
        (sd, {CONCEPT: 1.0}, {"positions": "some"}, "all, no_padding, content"),
        (sd, {CONCEPT: 1.0}, {"positions": torch.ones(3)}, "must be bool"),
        (sd, {CONCEPT: 1.0}, {"steps": (1000, 500)}, "need a hook point of the denoiser"),
        (sd, {CONCEPT: 1.0}, {"mask": torch.ones(2, 2)}, "positions are text tokens"),
        (sd, {CONCEPT: 1.0}, {"pooled": True}, "which has no pooled vector"),
        (sd, {"nowhere.safetensors": 1.0}, {}, "nowhere.safetensors"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            steerer.attach(pipe, concepts, **options)
        assert "\n" not in str(error.value)
        assert type(pipe).__call__.__qualname__ == type(pipe).__qualname__ + ".__call__"
        assert "Intercepted" not in repr(type(pipe).__mro__[0])
    attached = steerer.attach(sd, {CONCEPT: 1.0})
    with pytest.raises(InputError, match="set_strength"):
        steerer.attach(sd, {CONCEPT: 2.0}, rule="paper")
    attached.remove()
    with pytest.raises(InputError, match="no longer attached"):
        attached.set_strength(CONCEPT, 1.0)
    narrow = dataclasses.replace(steerer.sae, W_dec_FD=steerer.sae.W_dec_FD[:, :8])
    with pytest.raises(InputError, match="another model"):
        Steerer(narrow).attach(sd, {CONCEPT: 1.0})
