"""Every method leaves the pipeline as it was, takes batches and seeds, and refuses bad input in one line."""

import inspect

import numpy as np
import pytest
import torch

from revelio_jax import baselines
from revelio_jax.errors import InputError
from revelio_jax.pipelines.sampling import sample
from tests.revelio_jax.baselines.conftest import PHRASES, PROMPTS, SAMPLING, SEEDS

# Settings with which every method changes images of the tiny pipeline; few steps, hence no warm-up.
ACTIVE = {
    "plain": {},
    "negative_prompt": {},
    "sld": {"preset": "max"},
    "safree": {},
    "safree released": {"mode": "released"},
    "trasce": {"sigma": 50.0, "loss_scale": 20.0},
    "trasce released": {"mode": "released", "sigma": 50.0, "loss_scale": 20.0},
}


def state(pipe) -> dict:
    """Return everything of a pipeline that a method could leave changed."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    hooks = [
        len(getattr(module, kind))
        for part in modules
        for module in part.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")
    ]
    parameters = [(p.data_ptr(), p.requires_grad, p.grad is None, p.dtype) for m in modules for p in m.parameters()]
    return {
        "class": type(pipe),
        "components": {name: id(part) for name, part in pipe.components.items()},
        "hooks": hooks,
        "parameters": parameters,
        "configs": [str(getattr(part, "config", "")) for part in pipe.components.values()],
        "attributes": sorted(vars(pipe)),
        "training": [module.training for module in modules],
    }


@pytest.mark.parametrize("case", ACTIVE)
def test_a_method_leaves_the_pipeline_as_it_was(case, sd, run):
    plain = run("plain", sd)
    before = state(sd)
    images = run(case.split()[0], sd, **ACTIVE[case])
    assert state(sd) == before
    np.testing.assert_array_equal(run("plain", sd), plain)
    assert (case == "plain") == bool((images == plain).all())


@pytest.mark.parametrize("case", ["negative_prompt", "sld", "safree", "trasce"])
def test_a_method_that_fails_leaves_the_pipeline_as_it_was(case, sd):
    before = state(sd)
    name = case.split()[0]

    def fail(*_args, **_kwargs):
        raise ArithmeticError

    settings = baselines.make_settings(name, ACTIVE[case])
    hook = sd.unet.mid_block.register_forward_hook(fail)
    try:
        with pytest.raises(ArithmeticError), baselines.open_method(name, sd, PHRASES, settings) as sampler:
            sampler(PROMPTS, SEEDS, **SAMPLING)
    finally:
        hook.remove()
    assert state(sd) == before


@pytest.mark.parametrize("case", ["sld", "safree", "safree released", "trasce"])
def test_an_image_depends_on_its_seed_and_guidance_but_not_on_its_batch(case, sd, run):
    name, scales = case.split()[0], [3.0, 2.0, 3.0]
    together = run(name, sd, sampling={"guidance": scales}, **ACTIVE[case])
    alone = run(name, sd, PROMPTS[1:2], SEEDS[1:2], sampling={"guidance": scales[1]}, **ACTIVE[case])
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    other_seed = run(name, sd, seeds=[3, 9, 5], sampling={"guidance": scales}, **ACTIVE[case])
    assert np.abs(together.astype(int) - other_seed).mean((1, 2, 3)).argmax() == 1


@pytest.mark.parametrize(
    ("case", "forward", "backward"),
    [
        ("plain", 4, 0),
        ("negative_prompt", 4, 0),
        ("sld", 6, 0),
        ("safree", 6, 0),
        ("safree released", 6, 0),
        ("trasce", 6, 6),
    ],
)
def test_evaluations_per_image(case, forward, backward, sd, run):
    prompts = [PROMPTS[2]] * 3  # SAFREE changes each of them
    with baselines.counted(sd) as count:
        run(case.split()[0], sd, prompts, sampling={"batch_size": 2}, **ACTIVE[case])
    assert count.per_image(3) == (forward, backward)
    assert count.calls == 4
    run("plain", sd)
    assert count.calls == 4


def test_a_sampler_has_the_signature_of_sample(sd):
    wanted = inspect.signature(baselines.Sampler.__call__).parameters
    given = inspect.signature(sample).parameters
    assert [name for name in wanted if name != "self"] == [name for name in given if name not in ("pipe", "extra")]
    samples = []
    for name in ("plain", "sld"):
        settings = baselines.make_settings(name, {"scale": 0.0} if name == "sld" else {})
        with baselines.open_method(name, sd, PHRASES, settings) as sampler:
            samples.append(sampler(PROMPTS, SEEDS, **SAMPLING))
    assert not samples[1].flagged.any()
    np.testing.assert_array_equal(samples[0].images, samples[1].images)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("magic", {}, "method is 'magic'; it must be one of plain"),
        ("plain", {"scale": 1}, "unknown setting 'scale' of the method plain; it has no settings"),
        ("sld", {"strength": 1}, "unknown setting 'strength' of the method sld; allowed: preset, scale"),
        ("sld", {"preset": "MAX"}, "method sld: preset is 'MAX'; it must be one of weak, medium, strong, max"),
        ("sld", {"scale": -1}, "scale"),
        ("sld", {"momentum_beta": 2}, "must be a number from 0 to 1"),
        ("sld", {"warmup_steps": 1.5}, "whole number"),
        ("safree", {"mode": "code"}, "mode is 'code'; it must be one of paper, released"),
        ("safree", {"alpha": float("nan")}, "alpha is nan"),
        ("safree", {"reattention": 1}, "True or False"),
        ("safree", {"skip_scales": 0.5}, "two numbers"),
        ("trasce", {"sigma": 0}, "sigma is 0"),
        ("trasce", {"loss_scale": True}, "loss_scale is True"),
        ("negative_prompt", {"existing": 3}, "existing is 3; it must be a text"),
        ("checkpoint", {}, "needs the setting path"),
        ("checkpoint", {"path": "/nowhere"}, "existing folder or .safetensors file"),
        ("checkpoint", {"path": "/nowhere/esd.pt"}, "a pickle, which may run code; convert it once"),
    ],
)
def test_wrong_settings_are_one_line(name, fields, message):
    with pytest.raises(InputError, match=message):
        baselines.make_settings(name, fields)


@pytest.mark.parametrize(
    ("name", "family", "guidance", "message"),
    [
        ("sld", "sdxl", 7.5, "sld does not support the family sdxl; supported: sd$"),
        ("safree", "flux", 7.5, "supported: sd, sdxl$"),
        ("trasce", "flux", 7.5, "trasce does not support the family flux"),
        ("negative_prompt", "dit", 7.5, "does not support the family dit"),
        ("negative_prompt", "sd", [7.5, 1.0], "guidance is 1; it must be above 1 for negative_prompt"),
    ],
)
def test_a_family_or_guidance_is_refused_without_a_model(name, family, guidance, message):
    settings = baselines.make_settings(name, {})
    with pytest.raises(InputError, match=message):
        baselines.check_method(name, settings, family, guidance)
    baselines.check_method("plain", baselines.make_settings("plain", {}), family, guidance)


@pytest.mark.parametrize("case", ["negative_prompt", "sld", "safree released", "trasce"])
def test_guidance_of_one_is_refused_when_sampling(case, sd, run):
    with pytest.raises(InputError, match="must be above 1"):
        run(case.split()[0], sd, sampling={"guidance": 1.0}, **ACTIVE[case])


@pytest.mark.parametrize(
    ("name", "pipe", "message"),
    [
        ("negative_prompt", "flux", "no unconditional branch"),  # this FLUX is distilled
        ("negative_prompt", "dit", "no unconditional branch"),
        ("sld", "sdxl", "does not support the family sdxl"),
        ("safree", "flux", "does not support the family flux"),
        ("trasce", "sdxl", "does not support the family sdxl"),
    ],
)
def test_a_pipeline_is_refused_when_opening(name, pipe, message, request, run):
    with pytest.raises(InputError, match=message):
        run(name, request.getfixturevalue(pipe))


@pytest.mark.parametrize("phrases", [[], "nude", ["nude", " "], [3]])
@pytest.mark.parametrize("name", ["negative_prompt", "sld", "safree", "trasce"])
def test_phrases_are_refused(name, phrases, sd, run):
    with pytest.raises(InputError, match="phrase"):
        run(name, sd, phrases=phrases)


def test_the_negative_prompt_follows_an_existing_one(sd, sdxl, run):
    for pipe in (sd, sdxl):
        images = run("negative_prompt", pipe, PROMPTS[:1], [3], existing="cat")
        direct = pipe(
            PROMPTS[0],
            negative_prompt="cat, glossy 3d, red",
            generator=torch.Generator().manual_seed(3),
            guidance_scale=3.0,
            num_inference_steps=2,
            height=8,
            width=8,
            output_type="np",
        ).images
        np.testing.assert_array_equal(images, (255 * direct).round().astype(np.uint8))


def test_a_concept_that_the_text_encoder_cuts_is_named(sd, run, capsys):
    run("negative_prompt", sd, PROMPTS[:1], [3], phrases=["cat"] * 40)
    limit = sd.tokenizer.model_max_length
    assert f"of which the text_encoder reads {limit}" in capsys.readouterr().out
