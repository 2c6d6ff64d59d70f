"""Concept Steerers on Stable Diffusion 1.4, unsafe concepts: layer 9 of the CLIP text encoder.

    revelio extract|train|evaluate|export --config sd14_clip

Prompts: the I2P benchmark (4,703 rows), which you supply as data/i2p.csv with a column `prompt`; other columns
become labels. Another file: --config.extract.prompts=FILE.
Model: from the hub, or --config.model.id=FOLDER. Extraction reads only the text encoder.
Hardware: one GPU with 16 GB; a CPU works, slowly.
Store: 4,703 prompts x 77 tokens x 768 float32, 362,131 rows: 1.11 GB.
Time, estimated: extraction under a minute on a GPU, training 10 to 30 minutes (400M rows, 3,072 latents).
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "CompVis/stable-diffusion-v1-4"

    c.extract.prompts = "data/i2p.csv"
    c.extract.sites = ("clip.layer.9",)
    c.extract.positions = "all"
    c.extract.store = "stores/sd14_clip"

    presets.steerers(c)
    c.run = "runs/sd14_clip"

    c.steer.rule = "paper"
    return c
