"""SLD, SAFREE and TraSCE on the miniature SD: they change pictures with the concept, and nothing of the pipeline."""

import numpy as np
import pytest
import torch

from revelio_jax import baselines
from revelio_jax.pipelines.sampling import sample
from tests.helpers import MINIATURES

SAMPLING = {"steps": 2, "guidance": 2.5, "height": 32, "width": 32, "batch_size": 2}
PROMPTS, SEEDS = ["glossy 3d emoji of red apple", "flat emoji of tiger"], [3, 4]


@pytest.mark.slow
def test_methods_on_the_miniature():
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(MINIATURES / "sd", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    plain = sample(pipe, PROMPTS, SEEDS, **SAMPLING).images
    methods = [("sld", {"preset": "max"}), ("safree", {}), ("safree", {"mode": "released"}), ("trasce", {})]
    for name, fields in methods:
        settings = baselines.make_settings(name, fields)
        with baselines.open_method(name, pipe, ["glossy 3d"], settings) as sampler:
            images = sampler(PROMPTS, SEEDS, **SAMPLING).images
        assert images.shape == plain.shape
        assert np.abs(images[0].astype(int) - plain[0]).mean() > 1
    zero = [("sld", {"scale": 0.0}), ("safree", {"alpha": float("inf")})]
    for name, fields in zero:
        settings = baselines.make_settings(name, fields)
        with baselines.open_method(name, pipe, ["glossy 3d"], settings) as sampler:
            np.testing.assert_array_equal(sampler(PROMPTS, SEEDS, **SAMPLING).images, plain)
    np.testing.assert_array_equal(sample(pipe, PROMPTS, SEEDS, **SAMPLING).images, plain)


@pytest.mark.slow
def test_the_negative_prompt_of_the_miniature_flux():
    """It is not distilled: its two branches are separate passes."""
    import diffusers

    pipe = diffusers.FluxPipeline.from_pretrained(MINIATURES / "flux", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    plain = sample(pipe, PROMPTS[:1], SEEDS[:1], **SAMPLING).images
    settings = baselines.make_settings("negative_prompt", {})
    with (
        baselines.counted(pipe) as count,
        baselines.open_method("negative_prompt", pipe, ["glossy 3d"], settings) as sampler,
    ):
        images = sampler(PROMPTS[:1], SEEDS[:1], **SAMPLING).images
    assert np.abs(images.astype(int) - plain).mean() > 1
    assert (count.forward, count.calls) == (4, 4)
