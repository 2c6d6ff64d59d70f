"""Limits of steering: positions of the prompt, timesteps, an area of the image."""

import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.families import BY_NAME
from revelio_jax.steering import Clamp, Where
from revelio_jax.steering.session import state_of
from tests.helpers.steering import record_outputs

CONCEPT = "red apple"


def outputs(pipe, site: str, call) -> list[torch.Tensor]:
    """Return the activations of a hook point, after steering, in every pass of ``call``."""
    with torch.no_grad(), record_outputs(pipe, site) as passes:
        call()
    return passes


@pytest.mark.parametrize(
    ("family", "site", "tokens", "content"),
    [  # CLIP puts a BOS before the prompt, T5 does not
        ("sd", "clip.layer.1", slice(0, 6), slice(1, 5)),
        ("sdxl", "clip_l.layer.1+clip_g.layer.1", slice(0, 6), slice(1, 5)),
        ("flux", "t5.block.1", slice(0, 5), slice(0, 4)),
    ],
)
@pytest.mark.parametrize("rule", ["paper", "swap"])
def test_only_the_selected_positions_change(tiny, make_steerer, rule, family, site, tokens, content):
    pipe = tiny(family)
    steerer = make_steerer(pipe, site)
    names = site.split("+")
    prompt = "cat" if family == "flux" else "a emoji of cat"

    arguments = {"device": "cpu"}
    if family == "flux":
        arguments |= {"max_sequence_length": 10}
    else:
        arguments |= {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}

    def passes(**options):
        def encode():
            if not options:
                return pipe.encode_prompt(prompt, **arguments)
            with steerer.attach(pipe, {CONCEPT: sign}, rule=rule, **options):
                return pipe.encode_prompt(prompt, **arguments)

        return [outputs(pipe, name, encode)[-1][0] for name in names]

    plain = passes()
    sign = 1.0
    if all(torch.equal(a, b) for a, b in zip(passes(positions="all"), plain, strict=True)):
        sign = -1.0  # swap detects the concept in the prompt
    length = len(plain[0])
    everywhere = passes(positions="all")
    mask = torch.zeros(length, dtype=torch.bool)
    mask[2] = True
    for positions, kept in {"no_padding": tokens, "content": content, mask: slice(2, 3)}.items():
        for before, after, whole in zip(plain, passes(positions=positions), everywhere, strict=True):
            outside = torch.ones(length, dtype=torch.bool)
            outside[kept] = False
            assert torch.equal(after[outside], before[outside])
            torch.testing.assert_close(after[kept], whole[kept])
            assert (after[kept] != before[kept]).any()  # swap does not change BOS, which is equal in all prompts


def test_a_positions_mask_of_another_length_is_refused(tiny, make_steerer, run):
    pipe = tiny("sd")
    mask = torch.ones(5, dtype=torch.bool)
    attached = make_steerer(pipe, "clip.layer.1").attach(pipe, {CONCEPT: 1.0}, positions=mask)
    with attached, pytest.raises(InputError, match="5 entries"):
        run(pipe)


DENOISERS = {
    "sd": "unet.up_blocks.1.attentions.0",
    "sdxl": "unet.down_blocks.1.attentions.0",
    "flux": "flux.double.0.image",
    "dit": "dit.block.1",
}


@pytest.mark.parametrize("family", DENOISERS)
def test_steps_and_ramp_follow_the_timestep(tiny, make_steerer, run, family):
    pipe, site = tiny(family), DENOISERS[family]
    steerer = make_steerer(pipe, site)
    timesteps: list[float] = []

    def factors(steps, ramp):
        """Return the weight of each pass, as the hook reads it."""
        weights: list[float] = []
        with steerer.attach(pipe, {3: Clamp(1.0)}, steps=steps, ramp=ramp):
            hook = state_of(pipe).hooks[site]
            handle = hook_points.resolve(pipe, site).module.register_forward_hook(
                lambda m, a, out: weights.append(float(hook.active[0].weights[0]) if hook.active else 0.0)
            )
            run(pipe, steps=5, guided=False)
            handle.remove()
        return weights

    denoiser = BY_NAME[family].denoiser_of(pipe)

    def note(_module, args, kwargs):
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        timesteps.append(float(torch.as_tensor(timestep).flatten()[0]))

    handle = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    run(pipe, steps=5, guided=False)
    handle.remove()
    timesteps = [t * (1000 if family == "flux" else 1) for t in timesteps]
    assert len(timesteps) == 5
    assert timesteps == sorted(timesteps, reverse=True)
    assert factors(None, (1.0, 1.0)) == [1.0] * 5
    first, last = timesteps[1] + 1, timesteps[3] - 1
    ramped = factors((first, last), (0.5, 2.0))
    wanted = [0.0 if not last <= t <= first else 0.5 + 1.5 * (first - t) / (first - last) for t in timesteps]
    assert ramped == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("family", DENOISERS)
def test_a_mask_limits_steering_to_an_area_of_the_image(tiny, make_steerer, run, family):
    """The mask covers the left half of an image that is twice as wide as high, in each family's grid."""
    pipe, site = tiny(family), DENOISERS[family]
    steerer = make_steerer(pipe, site)
    mask = torch.zeros(32, 32)
    mask[:, :16] = 1
    size = {} if family == "dit" else {"height": 8, "width": 16}

    def passes(**options):
        def sample():
            if not options:
                return run(pipe, steps=1, guided=False, **size)
            with steerer.attach(pipe, {3: Clamp(5.0)}, **options):
                return run(pipe, steps=1, guided=False, **size)

        return outputs(pipe, site, sample)[0]

    plain, whole, painted = passes(), passes(ramp=(1.0, 1.0)), passes(mask=mask)
    positions = plain.shape[1]
    width = {"dit": int(positions**0.5)}.get(family, int((2 * positions) ** 0.5))
    column = torch.arange(positions) % width
    assert width * (positions // width) == positions
    assert width > 1
    left = column < width // 2
    torch.testing.assert_close(painted[:, left], whole[:, left])
    torch.testing.assert_close(painted[:, ~left], plain[:, ~left])
    assert (painted[:, left] != plain[:, left]).any()
    half = passes(mask=torch.full((3, 5), 0.5))
    torch.testing.assert_close(half - plain, (whole - plain) / 2, atol=1e-5, rtol=1e-4)


def test_where_and_its_fields_as_keywords_steer_equally(tiny, make_steerer, run):
    pipe, site = tiny("sd"), DENOISERS["sd"]
    steerer = make_steerer(pipe, site)
    with steerer.attach(pipe, {3: Clamp(5.0)}, steps=(1000, 400), ramp=(0.5, 2.0)):
        by_keywords = run(pipe, steps=3)
    with steerer.attach(pipe, {3: Clamp(5.0)}, where=Where(steps=(1000, 400), ramp=(0.5, 2.0))):
        assert torch.equal(run(pipe, steps=3), by_keywords)
    with steerer.attach(pipe, {3: Clamp(5.0)}, where=Where(steps=(1000, 400)), ramp=(0.5, 2.0)):
        assert torch.equal(run(pipe, steps=3), by_keywords)
    with pytest.raises(TypeError, match="step"):
        steerer.attach(pipe, {3: Clamp(5.0)}, step=(1000, 400))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.full((2, 2), 2.0)}, "0 .. 1"),
        ({"mask": torch.zeros(4)}, "height, width"),
        ({"steps": (0, 1000)}, "two timesteps, larger first"),
        ({"positions": "content"}, "is not in a text encoder"),
        ({"pooled": True}, "which has no pooled vector"),
    ],
)
def test_a_limit_without_effect_at_the_hook_point_is_refused(tiny, make_steerer, options, message):
    pipe = tiny("flux")
    with pytest.raises(InputError, match=message):
        make_steerer(pipe, "flux.double.0.image").attach(pipe, {3: 1.0}, **options)
    assert type(pipe).__name__ == "FluxPipeline"
