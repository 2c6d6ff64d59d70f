"""The whole way on the miniature Stable Diffusion that ships with the project.

    bash launch/quickstart.sh

or, one after the other:

    python -m extract.run         --config configs/mini_sd.py
    python -m revelio_jax.train   --config configs/mini_sd.py
    python -m revelio_jax.evaluate --config configs/mini_sd.py
    python -m revelio_jax.export  --config configs/mini_sd.py
    python -m revelio_jax.steering --config configs/mini_sd.py --concept "glossy 3d" --strength -1,-0.5,0

Hardware: 2 CPU cores. Store: 11,000 captions x 24 tokens x 128 float32, 136 MB.
"""

from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "extract/miniature/sd"
    c.model.family = "sd"

    c.extract.prompts = "extract/miniature/sd/prompts.csv"
    c.extract.sites = ("clip.layer.2",)
    c.extract.batch_size = 256
    c.extract.store = "stores/mini_sd"

    c.sae.k = 16
    c.sae.expansion = 4

    c.train.run = "runs/mini_sd"
    c.train.batch_size = 2048
    c.train.steps = 3000

    c.steer.steps = 15
    c.steer.guidance = 2.5
    c.steer.height = c.steer.width = 32
    c.steer.batch_size = 64
    c.steer.prompts = "extract/miniature/sd/prompts.csv"
    c.steer.judge = "extract/miniature/sd"
    return c
