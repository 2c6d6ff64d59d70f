"""Concept Steerers on Stable Diffusion 1.4, unsafe concepts: layer 9 of the CLIP text encoder.

    python -m extract.run          --config configs/sd14_clip.py
    python -m revelio_jax.train    --config configs/sd14_clip.py
    python -m revelio_jax.evaluate --config configs/sd14_clip.py
    python -m revelio_jax.export   --config configs/sd14_clip.py
    python -m revelio_jax.steering --config configs/sd14_clip.py --prompt "..." --concept "naked, nude" \
        --strength -0.5,-0.25,0

Prompts: the I2P benchmark, 4,703 rows, which you supply as data/i2p.csv; it has a column `prompt`,
and its other columns are kept beside the activations. From elsewhere: --config.extract.prompts=FILE.
Model: a folder works too, --config.model.id=FOLDER; only its text encoder is read for extraction.

Hardware: extraction and training on one GPU of 16 GB or more, or on a CPU with patience.
Store: 4,703 prompts x 77 tokens x 768 float32, 362,131 rows, 1.11 GB.
Time, estimated and not yet measured: extraction under a minute on a GPU, about 5 minutes on 8 CPU
cores; training, 400M rows of width 768 and 3,072 latents, 10 to 30 minutes on a current GPU.
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "CompVis/stable-diffusion-v1-4"
    c.model.family = "sd"
    c.model.dtype = "float32"

    c.extract.prompts = "data/i2p.csv"
    c.extract.sites = ("clip.layer.9",)
    c.extract.positions = "all"
    c.extract.store = "stores/sd14_clip"
    c.extract.dtype = "float32"

    presets.steerers(c)
    c.run = "runs/sd14_clip"

    c.steer.rule = "paper"
    c.steer.steps = 50
    c.steer.guidance = 7.5
    c.steer.height = c.steer.width = 512
    return c
