"""The miniature FLUX that ships with the project: block 2 of 4 of its T5, the miniature of flux_t5.py.

    revelio extract|train|evaluate|export --config mini_flux

Hardware: 2 CPU cores. Store: 10,962 captions, 77,373 tokens x 128 float32: 40 MB.
Time: 80 s in all. Result: FVU 0.11 on held-out rows.
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "extract/miniature/flux"
    c.model.family = "flux"

    c.extract.prompts = "extract/miniature/flux/prompts.csv"
    c.extract.shuffle = True  # the file is sorted by object, so a held-out chunk would hold unseen objects
    c.extract.sites = ("t5.block.2",)
    c.extract.height = c.extract.width = 32
    c.extract.batch_size = 256
    c.extract.store = "stores/mini_flux"

    c.sae.k = 20
    c.sae.expansion = 8
    c.sae.k_aux = 128
    c.sae.dead_after_rows = 50_000  # a run has 6M rows; with the default of 10M, no latent would count as dead

    c.run = "runs/mini_flux"
    c.train.batch_size = 2048
    c.train.steps = 3000
    c.train.learning_rate = 1e-3
    c.train.warmup_steps = 200  # without warm-up, Adam's first steps lower the biases until latents die
    c.train.decay_share = 0.3
    c.data.held_out = 0.2  # 15,500 rows, so that latents of rare words fire on some

    c.steer.pooled = True  # of 14 prompts with one seed, 2 stayed glossy with it and 4 without
    c.interpret.labels = ("style", "category", "name")  # the column held_out concerns the pipeline's training

    c.steer.steps = 15
    c.steer.guidance = 3.0
    c.steer.height = c.steer.width = 32
    c.steer.batch_size = 64
    c.steer.prompts = "extract/miniature/flux/prompts.csv"
    c.steer.judge = "extract/miniature/sd"  # both miniatures have the same image autoencoder

    presets.miniature_benchmark(c)
    return c
