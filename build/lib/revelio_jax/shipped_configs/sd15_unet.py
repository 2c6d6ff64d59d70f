"""Revelio on Stable Diffusion 1.5: the U-Net's middle and up blocks on noised pictures, pooled.

    python -m extract.run          --config configs/sd15_unet.py --config.extract.images=FOLDER
    python -m revelio_jax.train    --config configs/sd15_unet.py
    python -m revelio_jax.evaluate --config configs/sd15_unet.py
    python -m revelio_jax.export   --config configs/sd15_unet.py

and for another block --config.data.site=unet.up_blocks.1 --config.run=runs/sd15_up1; all four at
once, with `python -m revelio_jax.grid` and --grid train.site=unet.mid_block,unet.up_blocks.0.

Pictures: a folder that you supply, whose sub-folders are the labels, such as Oxford-IIIT Pet; a dataset
of the package `datasets` works too, --config.extract.images=OWNER/NAME with
--config.extract.image_column and --config.extract.label_column. The prompt is empty.
Model: a folder works too, --config.model.id=FOLDER. Stable Diffusion 2.1, whose U-Net predicts v, is
--config.model.id=stabilityai/stable-diffusion-2-1; its sites bear the same names.

At 256 x 256 pixels every picture and timestep gives one row of each site: the mean over positions.
`--list_sites` shows what more would take; config.extract.pool=none keeps every position.
Hardware: a GPU of 8 GB for extraction in float16, more with larger batches; 16 GB for training:
float32 parameters and Adam moments of 2 x 1,280 x 81,920 weights take 2.5 GB.
Store: 7,390 pictures (Pet) x 5 timesteps, 36,950 rows a site, 4,480 float32 numbers in all: 0.66 GB.
Time, estimated and not yet measured: extraction 5 to 10 minutes on a current GPU; a pass ends
after up_blocks.2; training, 84M rows of width 1,280 and 81,920 latents, 10 to 60 minutes a block.
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    c.model.family = "sd"
    c.model.dtype = "float32"

    c.extract.mode = "noised"
    c.extract.images = "data/pet"
    c.extract.sites = ("unet.mid_block", "unet.up_blocks.0", "unet.up_blocks.1", "unet.up_blocks.2")
    c.extract.timesteps = (0, 25, 100, 200, 500)
    c.extract.pool = "mean"
    c.extract.height = c.extract.width = 256
    c.extract.batch_size = 32
    c.extract.store = "stores/sd15_unet"
    c.extract.shard_samples = 1024  # 92 MB a shard

    presets.revelio(c)
    c.data.site = "unet.up_blocks.1"  # where the paper finds the finest classes
    c.run = "runs/sd15_unet"
    return c
