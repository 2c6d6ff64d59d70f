"""The miniature Stable Diffusion that ships with the project: layer 2 of its CLIP text encoder.

    revelio extract|train|evaluate|export|steer --config mini_sd        # or bash launch/quickstart.sh

Hardware: 2 CPU cores. Store: 10,962 captions x 24 tokens x 128 float32: 135 MB.
Result: --concept "glossy 3d" --strength -1.5,0 removes the glossy style from images.
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    presets.miniature_sd(c)

    c.extract.prompts = "extract/miniature/sd/prompts.csv"
    c.extract.sites = ("clip.layer.2",)
    c.extract.batch_size = 256
    c.extract.store = "stores/mini_sd"

    c.sae.k = 20
    c.sae.expansion = 4
    c.sae.k_aux = 128
    c.sae.dead_after_rows = 50_000  # a run has 6M rows; with the default of 10M, no latent would count as dead

    c.run = "runs/mini_sd"
    c.train.batch_size = 2048
    c.train.steps = 3000
    c.train.learning_rate = 1e-3
    c.train.warmup_steps = 200  # without warm-up, Adam's first steps lower the biases until latents die
    c.train.decay_share = 0.3
    c.data.held_out = 0.2  # 52,000 rows, so that latents of rare words fire on some

    c.interpret.labels = ("style", "category", "name")  # the column held_out concerns the pipeline's training

    presets.miniature_benchmark(c)
    c.benchmark.methods += ("sld preset=max", "safree", "trasce")
    return c
