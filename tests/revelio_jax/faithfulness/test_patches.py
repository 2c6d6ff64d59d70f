"""Patches at every kind of hook point: which rows of a pipeline they replace, and which they leave."""

import contextlib

import numpy as np
import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.faithfulness import experiment, figures, patches, sites
from revelio_jax.faithfulness.patches import Clock, Interchange, Replacement
from revelio_jax.faithfulness.sites import Site, scanned_site, schedule, trained_site
from revelio_jax.pipelines import hook_points
from tests.helpers.steering import record_outputs
from tests.revelio_jax.faithfulness.conftest import ALL


def sampled(pipe, inputs):
    return experiment.sample_prompts(pipe, experiment.settings_of(inputs.measured, inputs.config, 0), inputs.config, "")


@pytest.mark.parametrize(("family", "name"), ALL)
def test_identity_changes_no_bit_and_zeros_change_images(family, name, tiny, make_inputs):
    pipe, inputs = tiny(family), make_inputs(family)
    plain, site = sampled(pipe, inputs), scanned_site(pipe, name)
    with patches.attach(pipe, site.points, Replacement(lambda x: x, Clock()), positions=site.positions):
        assert np.array_equal(sampled(pipe, inputs), plain)
    clock = Clock()
    with patches.attach(pipe, site.points, Replacement(patches.zeros, clock), positions=site.positions):
        changed = sampled(pipe, inputs)
    assert clock.replaced
    assert not np.array_equal(changed, plain)
    assert np.array_equal(sampled(pipe, inputs), plain)  # the pipeline is restored


@pytest.mark.parametrize(("family", "name"), ALL)
def test_only_conditional_rows_are_replaced(family, name, tiny, make_inputs):
    pipe, inputs = tiny(family), make_inputs(family)
    site = scanned_site(pipe, name)
    with patches.attach(pipe, site.points, Replacement(patches.zeros, Clock())):
        part = name.partition("+")[0]
        with record_outputs(pipe, part) as outputs:
            sampled(pipe, inputs)
    outputs = outputs[-1:] if len(site.points) > 1 else outputs  # the pass before reads all of the joined activations
    zero = [bool((row == 0).all()) for output in outputs for row in output]
    assert any(zero)
    # The tiny FLUX takes guidance as an input, and SDXL does not encode an empty negative prompt.
    assert all(zero) == (family == "flux" or (family == "sdxl" and site.is_text))


def test_padding_of_t5_is_left_if_the_sae_was_not_trained_on_it(tiny):
    pipe = tiny("flux")
    site = scanned_site(pipe, "t5.block.1")
    assert site.positions == "no_padding"
    with record_outputs(pipe, site.name) as plain, torch.inference_mode():
        figures.encode(pipe, ["red cat"], 3.0, (8, 8))
    patched = patches.attach(pipe, site.points, Replacement(patches.zeros, Clock()), positions=site.positions)
    with patched, record_outputs(pipe, site.name) as outputs:
        figures.encode(pipe, ["red cat"], 3.0, (8, 8))
    length = len(pipe.tokenizer_2("red cat").input_ids)
    assert (outputs[0][0, :length] == 0).all()
    assert torch.equal(outputs[0][0, length:], plain[0][0, length:])


def test_only_steps_of_trained_timesteps_are_replaced(tiny, make_inputs):
    pipe, inputs = tiny("sd"), make_inputs("sd")
    last = schedule(pipe, 2, (8, 8))[-1]
    point = hook_points.resolve(pipe, "unet.mid_block")
    with contextlib.ExitStack() as stack:
        clock = stack.enter_context(patches.running_clock(pipe))
        outputs = stack.enter_context(record_outputs(pipe, point.name))
        stack.enter_context(patches.attach(pipe, (point,), Replacement(patches.zeros, clock, (last,))))
        sampled(pipe, inputs)
    assert clock.timestep == last
    assert [bool((x[len(x) // 2 :] == 0).all()) for x in outputs] == [False, True]


@pytest.mark.parametrize("scale", [1, 1000])
def test_timesteps_of_half_precision_count_as_trained_only_if_the_family_rounds_them(scale):
    rounded = 1000 * float(torch.tensor(0.932, dtype=torch.bfloat16))
    assert patches.is_trained(rounded, (932,), scale) == (scale == 1000)
    assert not patches.is_trained(900.0, (932,), scale)


def test_zeros_of_a_difference_skip_the_block(tiny):
    pipe = tiny("dit")
    point = hook_points.resolve(pipe, "dit.block.1")
    inputs: list[torch.Tensor] = []
    remove = point.module.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].clone()))
    latents = torch.randn(1, 4, 8, 8)
    patched = patches.patched_passes(point, Replacement(patches.zeros, Clock()), difference=True)
    with patched, record_outputs(pipe, point.name) as outputs, torch.no_grad():
        pipe.transformer(latents, timestep=torch.tensor([5]), class_labels=torch.tensor([1]))
    remove.remove()
    torch.testing.assert_close(outputs[0], inputs[0])


def test_interchange_of_the_whole_text_gives_the_images_of_the_other_prompts(tiny, make_inputs):
    pipe, inputs = tiny("sd"), make_inputs("sd")
    site, patch = scanned_site(pipe, "clip.layer.1"), Interchange(prompts=2)
    prompts = experiment.settings_of(inputs.measured[:2], inputs.config, 0)
    prompts = experiment.Prompts(prompts.rows, [7, 7], prompts.guidance, prompts.size)
    plain = experiment.sample_prompts(pipe, prompts, inputs.config, "")
    with patches.attach(pipe, site.points, Replacement(patch, Clock())):
        changed = experiment.sample_prompts(pipe, prompts, inputs.config, "")
    assert not np.array_equal(plain[0], plain[1])
    assert np.array_equal(changed[0], plain[1])
    assert np.array_equal(changed[1], plain[1])


def test_interchange_keeps_branches_of_guidance_apart():
    x_BTD = torch.arange(8.0)[:, None, None]
    assert Interchange(prompts=4)(x_BTD).flatten().tolist() == [2, 3, 2, 3, 6, 7, 6, 7]


def test_saes_of_pooled_rows_cannot_be_spliced(tiny, make_steerer, make_inputs):
    pipe = tiny("sd")
    sae = make_steerer(pipe, "unet.mid_block").sae
    with pytest.raises(InputError, match=r"config\.extract\.pool is 'mean'; it must be none"):
        trained_site(pipe, sae, make_inputs("sd", pool="mean").config)
    site = trained_site(pipe, sae, make_inputs("sd", mode="noised", timesteps=(25, 100)).config)
    assert (site.timesteps, site.positions) == ((25, 100), "all")


def test_a_text_sae_keeps_its_positions_and_has_no_timesteps(tiny, make_steerer, make_inputs):
    pipe = tiny("sd")
    sae = make_steerer(pipe, "clip.layer.1", positions="content", value="output").sae
    site = trained_site(pipe, sae, make_inputs("sd", pool="mean", timesteps=(5,)).config)
    assert site == Site("clip.layer.1", site.points, "content", (), False)


def test_hook_points_without_an_effect_are_refused(tiny):
    with pytest.raises(InputError, match="no output of a StableDiffusionXLPipeline depends on it"):
        sites.scanned_site(tiny("sdxl"), "clip_l.layer.2")
