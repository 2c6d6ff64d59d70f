"""Revelio on DiT-XL/2: five of its 28 blocks on noised images, pooled.

    revelio extract|train|evaluate|export --config dit_xl2

Images: a labeled folder that you supply as data/pet, or --config.extract.images=FOLDER; see sd15_unet.py. The class
is the null class, unless --config.extract.prompt names an ImageNet class. The blocks read latents noised to
timestep t; the paper's released code adds no noise.
Another block: --config.data.site=dit.block.6 --config.run=runs/dit_xl2_6.
Hardware: a GPU with 8 GB for extraction and one with 16 GB for training. Parameters and Adam moments take 2.0 GB.
Store: 7,390 images (Pet) x 5 timesteps, 36,950 rows of 1,152 float32 per block: 0.85 GB.
Time, estimated: extraction 5 to 10 minutes, training 10 to 60 minutes per block (84M rows, 73,728 latents).
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "facebook/DiT-XL-2-256"
    c.model.family = "dit"

    c.extract.mode = "noised"
    c.extract.images = "data/pet"
    c.extract.sites = tuple(f"dit.block.{n}" for n in (6, 10, 14, 18, 22))
    c.extract.timesteps = (0, 25, 100, 200, 500)
    c.extract.pool = "mean"
    c.extract.height = c.extract.width = 256
    c.extract.batch_size = 32
    c.extract.store = "stores/dit_xl2"
    c.extract.shard_samples = 1024  # 118 MB per shard

    presets.revelio(c)
    c.data.site = "dit.block.14"
    c.run = "runs/dit_xl2"
    return c
