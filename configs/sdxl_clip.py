"""Concept Steerers on Stable Diffusion XL: both CLIP text encoders, joined token by token, in one SAE.

    revelio extract|train|evaluate|export --config sdxl_clip

The hook point joins layer 10 of CLIP-L (width 768) and layer 28 of OpenCLIP-bigG (width 1,280).
Prompts: the I2P benchmark (4,703 rows), as in sd14_clip.py.
Hardware: one GPU with 16 GB or one TPU v5e chip for training. Parameters and Adam moments take 1.6 GB.
Store: 4,703 prompts x 77 tokens x 2,048 float32, 362,131 rows: 2.97 GB.
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "stabilityai/stable-diffusion-xl-base-1.0"
    c.model.family = "sdxl"

    c.extract.prompts = "data/i2p.csv"
    c.extract.sites = ("clip_l.layer.10+clip_g.layer.28",)
    c.extract.positions = "all"
    c.extract.store = "stores/sdxl_clip"

    presets.steerers(c)
    c.sae.k = 64
    c.sae.expansion = 16
    c.run = "runs/sdxl_clip"

    c.steer.rule = "paper"
    c.steer.height = c.steer.width = 1024
    c.steer.batch_size = 1
    return c
