"""Revelio on Stable Diffusion 1.5: the U-Net's middle and up blocks on noised images, pooled.

    revelio extract|train|evaluate|export --config sd15_unet

Images: a folder that you supply as data/pet, for example Oxford-IIIT Pet; its subfolders are the labels. Or a dataset
of the package `datasets`: --config.extract.{images=OWNER/NAME,image_column,label_column}.
Model: from the hub, or --config.model.id=FOLDER. Stable Diffusion 2.1, which predicts v, has the same hook points:
--config.model.id=stabilityai/stable-diffusion-2-1.
Each image and timestep gives one row per hook point, the mean over positions. config.extract.pool=none keeps every
position; `--list_sites` prints the size.
Another block: --config.data.site=unet.up_blocks.1 --config.run=runs/sd15_up1. All at once: `revelio grid` with
--grid data.site=unet.mid_block,unet.up_blocks.0.
Hardware: a GPU with 8 GB for extraction in float16 and one with 16 GB for training. Parameters and Adam moments take
2.5 GB.
Store: 7,390 images (Pet) x 5 timesteps, 36,950 rows per hook point, 4,480 float32 numbers in all: 0.66 GB.
Time, estimated: extraction 5 to 10 minutes, training 10 to 60 minutes per block (84M rows, 81,920 latents).
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "stable-diffusion-v1-5/stable-diffusion-v1-5"

    c.extract.mode = "noised"
    c.extract.images = "data/pet"
    c.extract.sites = ("unet.mid_block", "unet.up_blocks.0", "unet.up_blocks.1", "unet.up_blocks.2")
    c.extract.timesteps = (0, 25, 100, 200, 500)
    c.extract.pool = "mean"
    c.extract.height = c.extract.width = 256
    c.extract.batch_size = 32
    c.extract.store = "stores/sd15_unet"
    c.extract.shard_samples = 1024  # 92 MB per shard

    presets.revelio(c)
    c.data.site = "unet.up_blocks.1"  # the paper's best block for fine-grained classes
    c.run = "runs/sd15_unet"
    return c
