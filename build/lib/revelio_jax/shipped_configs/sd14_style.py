"""Concept Steerers on Stable Diffusion 1.4, styles: layer 10 of the CLIP text encoder.

    python -m extract.run          --config configs/sd14_style.py
    python -m revelio_jax.train    --config configs/sd14_style.py
    python -m revelio_jax.evaluate --config configs/sd14_style.py
    python -m revelio_jax.export   --config configs/sd14_style.py
    python -m revelio_jax.steering --config configs/sd14_style.py --prompt "..." --concept "..." \
        --strength -1,0,1

Prompts: about 4,000, 40 styles x 100, which you supply as data/styles.csv; it has a column `prompt`,
and its other columns are kept beside the activations. From elsewhere: --config.extract.prompts=FILE.
Model: a folder works too, --config.model.id=FOLDER; only its text encoder is read for extraction.

Hardware: extraction on a CPU or any GPU; training on one GPU of 16 GB or more: float32 parameters and
Adam moments of 2 x 768 x 49,152 weights take 0.9 GB, a batch's pre-activations 0.8 GB.
Store: 4,000 prompts x 77 tokens x 768 float32, 308,000 rows, 0.95 GB.
Time, estimated and not yet measured: extraction under a minute on a GPU, about 5 minutes on 8 CPU
cores; training, 400M rows of width 768 and 49,152 latents, 1 to 3 hours on a current GPU.
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "CompVis/stable-diffusion-v1-4"
    c.model.family = "sd"
    c.model.dtype = "float32"

    c.extract.prompts = "data/styles.csv"
    c.extract.sites = ("clip.layer.10",)
    c.extract.positions = "all"
    c.extract.store = "stores/sd14_style"
    c.extract.dtype = "float32"

    presets.steerers(c)
    c.sae.k = 64
    c.sae.expansion = 64
    c.run = "runs/sd14_style"

    c.steer.rule = "paper"
    c.steer.steps = 50
    c.steer.guidance = 7.5
    c.steer.height = c.steer.width = 512
    return c
