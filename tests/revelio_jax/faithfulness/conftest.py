"""Tiny pipelines of every family, and settings to sample them."""

import dataclasses

import numpy as np
import pytest

from revelio_jax.config import Config, ExtractConfig, SteerConfig
from revelio_jax.faithfulness.experiment import FLAGS, Inputs
from tests.helpers.steering import (  # noqa: F401
    dit,
    fitted,
    flux,
    make_clip,
    make_steerer,
    miniature,
    own,
    pipe,
    sd,
    sdxl,
    t5,
    tiny,
    vae,
)

PROMPTS = ["a flat emoji of cat", "a glossy 3d emoji of red apple", "red cat", "a red apple", "flat cat", "3d apple"]
CLASSES = ["tench", "goldfish", "0", "1", "2", "3"]  # of the tiny DiT
POINTS = {  # a hook point of each kind
    "sd": ("clip.layer.1", "unet.mid_block", "unet.up_blocks.1.attentions.0"),
    "sdxl": ("clip_l.layer.1", "clip_l.layer.1+clip_g.layer.1", "unet.down_blocks.1.attentions.0"),
    "flux": ("clip.layer.1", "t5.block.1", "flux.double.0.text", "flux.double.1.image", "flux.single.0.image"),
    "dit": ("dit.block.1",),
}
ALL = [(family, name) for family, names in POINTS.items() for name in names]


@pytest.fixture
def make_inputs():
    """A function that makes the inputs of an experiment on a tiny pipeline, without a judge."""

    def make(family: str, images: int = 0, **extract) -> Inputs:
        texts = CLASSES if family == "dit" else PROMPTS
        rows = [{"prompt": text} for text in texts]
        steer = SteerConfig(steps=2, guidance=3.0, height=8, width=8, batch_size=2)
        config = dataclasses.replace(
            Config(), steer=steer, extract=ExtractConfig(height=8, width=8, batch_size=2, **extract)
        )
        flags = {name: default for name, (default, _) in FLAGS.items()}
        drawn = (
            np.random.default_rng(0).uniform(-1, 1, (2, images, 3, 8, 8)).astype(np.float32) if images else [None] * 2
        )
        return Inputs(config, flags, rows, rows[:2], rows[2:4], *drawn, judge=None)

    return make
