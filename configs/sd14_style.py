"""Concept Steerers on Stable Diffusion 1.4, styles: layer 10 of the CLIP text encoder.

    revelio extract|train|evaluate|export --config sd14_style

Prompts: about 4,000 (40 styles x 100), which you supply as data/styles.csv with a column `prompt`; other columns
become labels. Another file: --config.extract.prompts=FILE.
Model: from the hub, or --config.model.id=FOLDER. Extraction reads only the text encoder.
Hardware: a CPU or any GPU for extraction, one GPU with 16 GB for training. Parameters and Adam moments take 0.9 GB,
the pre-activations of a batch 0.8 GB.
Store: 4,000 prompts x 77 tokens x 768 float32, 308,000 rows: 0.95 GB.
Time, estimated: extraction under a minute on a GPU, training 1 to 3 hours (400M rows, 49,152 latents).
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "CompVis/stable-diffusion-v1-4"

    c.extract.prompts = "data/styles.csv"
    c.extract.sites = ("clip.layer.10",)
    c.extract.positions = "all"
    c.extract.store = "stores/sd14_style"

    presets.steerers(c)
    c.sae.k = 64
    c.sae.expansion = 64
    c.run = "runs/sd14_style"

    c.steer.rule = "paper"
    return c
