"""A small version of Revelio: which block of the miniature Stable Diffusion's U-Net encodes which label.

    revelio extract|train|evaluate|export|interpret --config mini_sd_unet

Extraction generates and saves an image of every object in every style. Each position of each block at five
timesteps is a row.
Another hook point: --config.data.site=unet.mid_block --config.run=runs/mini_sd_unet/mid_block.
Hardware: 2 CPU cores.
Store: 1,482 images x 5 timesteps x (16 x 128 + 64 x 128 + 64 x 64) float32: 425 MB.
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    presets.miniature_sd(c)

    c.extract.mode = "generate"
    c.extract.prompts = "extract/miniature/sd/objects.csv"
    c.extract.shuffle = True  # the file is sorted by category
    c.extract.sites = ("unet.mid_block", "unet.up_blocks.0", "unet.up_blocks.1")
    c.extract.timesteps = (932, 732, 532, 332, 132)
    c.extract.steps = 15
    c.extract.guidance = 2.5
    c.extract.save_images = True
    c.extract.batch_size = 64
    c.extract.store = "stores/mini_sd_unet"

    c.sae.k = 16
    c.sae.expansion = 8
    c.sae.k_aux = 128
    c.sae.dead_after_rows = 100_000

    c.data.site = "unet.up_blocks.0"
    c.run = "runs/mini_sd_unet/up_blocks.0"
    c.train.batch_size = 2048
    c.train.steps = 3000
    c.train.learning_rate = 1e-3
    c.train.warmup_steps = 200
    c.train.decay_share = 0.3
    c.data.held_out = 0.1

    c.interpret.embedder = "extract/miniature/sd"  # the judge's features; it never saw an activation of the U-Net
    return c
