"""Concept Steerers on FLUX.1-dev: block 22 of the T5-XXL text encoder.

    revelio extract|train|evaluate|export --config flux_t5

Prompts: the I2P benchmark (4,703 rows), which you supply as data/i2p.csv with a column `prompt`; other columns
become labels. Another file: --config.extract.prompts=FILE.
Model: accept its license on the hub and run `hf auth login`, or pass --config.model.id=FOLDER. Extraction reads only
T5, 9.5 GB in bfloat16.
Hardware: a GPU with 16 GB for extraction, 24 GB for training (parameters and Adam moments take 6.4 GB), and 40 GB
or offload for steering.
Store: 4,703 prompts x 512 tokens x 4,096 bfloat16, 2,407,936 rows: 19.7 GB. Most rows are padding, which the paper
keeps; --config.extract.positions=no_padding drops them.
Time, estimated: extraction 5 to 10 minutes, training several hours (400M rows, 65,536 latents).
"""

from revelio_jax import presets
from revelio_jax.config import default


def get_config():
    c = default()
    c.model.id = "black-forest-labs/FLUX.1-dev"
    c.model.family = "flux"
    c.model.dtype = "bfloat16"  # float16 corrupts T5

    c.extract.prompts = "data/i2p.csv"
    c.extract.sites = ("t5.block.22",)
    c.extract.positions = "all"
    c.extract.batch_size = 16
    c.extract.store = "stores/flux_t5"
    c.extract.dtype = "bfloat16"
    c.extract.shard_samples = 64  # 268 MB per shard, which is held in memory

    presets.steerers(c)
    c.sae.k = 64
    c.sae.expansion = 16
    c.run = "runs/flux_t5"

    c.steer.rule = "paper"
    c.steer.guidance = 3.5
    c.steer.height = c.steer.width = 1024
    c.steer.batch_size = 1
    return c
