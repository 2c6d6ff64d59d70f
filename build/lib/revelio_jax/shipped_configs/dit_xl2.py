"""Revelio on DiT-XL/2: five of its 28 blocks on noised pictures, pooled.

    python -m extract.run          --config configs/dit_xl2.py --config.extract.images=FOLDER
    python -m revelio_jax.train    --config configs/dit_xl2.py
    python -m revelio_jax.evaluate --config configs/dit_xl2.py
    python -m revelio_jax.export   --config configs/dit_xl2.py

and for another block --config.data.site=dit.block.6 --config.run=runs/dit_xl2_6.

Pictures: as in sd15_unet.py. The class is the null class, unless --config.extract.prompt names one of
ImageNet's. What the blocks see are noised latents at timestep t, which the paper's released code leaves
without noise.
Model: 256 x 256 pixels; a folder works too, --config.model.id=FOLDER.

Hardware: a GPU of 8 GB for extraction; 16 GB for training: float32 parameters and Adam moments of
2 x 1,152 x 73,728 weights take 2.0 GB.
Store: 7,390 pictures (Pet) x 5 timesteps, 36,950 rows of 1,152 float32 a block: 0.85 GB.
Time, estimated and not yet measured: extraction 5 to 10 minutes on a current GPU; a pass ends
after block 22; training, 84M rows of width 1,152 and 73,728 latents, 10 to 60 minutes a block.
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "facebook/DiT-XL-2-256"
    c.model.family = "dit"
    c.model.dtype = "float32"

    c.extract.mode = "noised"
    c.extract.images = "data/pet"
    c.extract.sites = tuple(f"dit.block.{n}" for n in (6, 10, 14, 18, 22))
    c.extract.timesteps = (0, 25, 100, 200, 500)
    c.extract.pool = "mean"
    c.extract.height = c.extract.width = 256
    c.extract.batch_size = 32
    c.extract.store = "stores/dit_xl2"
    c.extract.shard_samples = 1024  # 118 MB a shard

    presets.revelio(c)
    c.data.site = "dit.block.14"
    c.run = "runs/dit_xl2"
    return c
