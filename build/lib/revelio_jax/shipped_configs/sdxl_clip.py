"""Concept Steerers on Stable Diffusion XL: both CLIP text encoders, joined token by token, in one SAE.

    python -m revelio_jax.plan     --config configs/sdxl_clip.py --topology v5e:2x2
    python -m extract.run          --config configs/sdxl_clip.py
    python -m revelio_jax.train    --config configs/sdxl_clip.py
    python -m revelio_jax.evaluate --config configs/sdxl_clip.py
    python -m revelio_jax.export   --config configs/sdxl_clip.py
    python -m revelio_jax.steering --config configs/sdxl_clip.py --prompt "..." --concept "..." \
        --strength -0.5,0

The site is layer 10 of CLIP-L (width 768) beside layer 28 of OpenCLIP-bigG (width 1,280).

Prompts: the I2P benchmark, 4,703 rows, as in sd14_clip.py.

Hardware: training on one GPU of 16 GB or more, or one TPU v5e chip: float32 parameters and Adam
moments of 2 x 2,048 x 32,768 weights take 1.6 GB.
Store: 4,703 prompts x 77 tokens x 2,048 float32, 362,131 rows, 2.97 GB.
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "stabilityai/stable-diffusion-xl-base-1.0"
    c.model.family = "sdxl"
    c.model.dtype = "float32"

    c.extract.prompts = "data/i2p.csv"
    c.extract.sites = ("clip_l.layer.10+clip_g.layer.28",)
    c.extract.positions = "all"
    c.extract.store = "stores/sdxl_clip"
    c.extract.dtype = "float32"

    presets.steerers(c)
    c.sae.k = 64
    c.sae.expansion = 16
    c.run = "runs/sdxl_clip"

    c.steer.rule = "paper"
    c.steer.steps = 50
    c.steer.guidance = 7.5
    c.steer.height = c.steer.width = 1024
    c.steer.batch_size = 1
    return c
