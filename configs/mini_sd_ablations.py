"""Which layer, which capacity and which strength: SAEs of the miniature's text encoder that differ in one field each.

    revelio extract|grid --config mini_sd_ablations --grid data.site=clip.layer.0,clip.layer.1,clip.layer.3

The commands that train, benchmark and draw all ablations are in docs/benchmark.md. The base is layer 2, k 20 and an
expansion of 4, as in mini_sd, with fewer steps and fewer images.
Hardware: 2 CPU cores.
Store: 10,962 captions x 24 tokens x 4 hook points x 128 float32: 539 MB.
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    presets.miniature_sd(c)

    c.extract.prompts = "extract/miniature/sd/prompts.csv"
    c.extract.sites = ("clip.layer.0", "clip.layer.1", "clip.layer.2", "clip.layer.3")
    c.extract.batch_size = 256
    c.extract.store = "stores/mini_sd_ablations"

    c.sae.k = 20
    c.sae.expansion = 4
    c.sae.k_aux = 128
    c.sae.dead_after_rows = 50_000

    c.data.site = "clip.layer.2"
    c.run = "runs/mini_sd_ablations"
    c.train.batch_size = 2048
    c.train.steps = 600
    c.train.learning_rate = 1e-3
    c.train.warmup_steps = 100
    c.train.decay_share = 0.3
    c.data.held_out = 0.2

    presets.miniature_benchmark(c)
    c.benchmark.concepts = ("style=glossy 3d", "category=heart")
    c.benchmark.methods = ("steer rule=swap",)
    c.benchmark.prompts = 24
    c.benchmark.seeds = 1
    c.benchmark.repetitions = 0
    return c
