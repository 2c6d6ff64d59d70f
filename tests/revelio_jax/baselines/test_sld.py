"""SLD: diffusers' presets, the plain pipeline at scale 0, the safety checker, and few steps."""

import numpy as np
import pytest

from revelio_jax.baselines.sld import PRESETS, Sld
from revelio_jax.errors import InputError
from tests.helpers.pipelines import with_safety_checker
from tests.revelio_jax.baselines.conftest import PROMPTS


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_those_of_diffusers(preset):
    from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig

    theirs = dict(getattr(SafetyConfig, preset.upper()))
    if preset == "weak":
        assert theirs["sld_guidance_scale"] == 20  # the paper has 200
        theirs["sld_guidance_scale"] = 200
    assert Sld(preset).arguments() == theirs
    assert Sld(preset, scale=3.0).arguments() == theirs | {"sld_guidance_scale": 3.0}


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_scale_images_are_those_of_the_plain_pipeline(sd, run, scale):
    scaling = sd.vae.config.scaling_factor
    assert scaling * (1 / scaling * 3.0) != 1  # a factor whose inverse is not exact
    np.testing.assert_array_equal(run("sld", sd, scale=scale), run("plain", sd))


def test_images_depend_on_the_phrases(sd, run):
    first, second = (run("sld", sd, preset="max", phrases=[phrase]) for phrase in ("cat", "red apple"))
    assert (first != second).any()


def test_a_warm_up_that_never_ends_is_refused(sd, run):
    with pytest.raises(InputError, match="warmup_steps is 10; it must be below the number of sampling steps, 2"):
        run("sld", sd)
    run("sld", sd, warmup_steps=1)


def test_the_safety_checker_of_the_pipeline_works_on_any_batch(sd, run):
    checked = with_safety_checker(sd)
    images = run("sld", checked, [*PROMPTS, PROMPTS[0]], [1, 2, 3, 4], preset="max", sampling={"batch_size": 4})
    assert not images.any()  # all are flagged, hence black
