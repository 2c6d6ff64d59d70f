"""Concept Steerers on FLUX.1-dev: block 22 of the T5-XXL text encoder.

    python -m extract.run          --config configs/flux_t5.py
    python -m revelio_jax.train    --config configs/flux_t5.py
    python -m revelio_jax.evaluate --config configs/flux_t5.py
    python -m revelio_jax.export   --config configs/flux_t5.py
    python -m revelio_jax.steering --config configs/flux_t5.py --prompt "..." --concept "naked, nude" \
        --strength -0.3,-0.15,0

Prompts: the I2P benchmark, 4,703 rows, which you supply as data/i2p.csv; it has a column `prompt`,
and its other columns are kept beside the activations. From elsewhere: --config.extract.prompts=FILE.
Model: its licence is accepted on the hub and `hf auth login` given first, or a folder is named with
--config.model.id=FOLDER. Only T5 (9.5 GB in bfloat16) is read for extraction.

Hardware: a GPU of 16 GB for extraction; 24 GB or more for training, whose float32 parameters and
Adam moments of 2 x 4,096 x 65,536 weights take 6.4 GB; 40 GB, or offload, for steering FLUX itself.
Store: 4,703 prompts x 512 tokens x 4,096 bfloat16, 2,407,936 rows, 19.7 GB. Most rows are padding;
--config.extract.positions=no_padding drops them, and is not what the paper did.
Time, estimated and not yet measured: extraction 5 to 10 minutes; training, 400M rows of width 4,096
and 65,536 latents, some hours on one current datacentre GPU.
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
    c.extract.shard_samples = 64  # 268 MB a shard, which is held in memory

    presets.steerers(c)
    c.sae.k = 64
    c.sae.expansion = 16
    c.run = "runs/flux_t5"

    c.steer.rule = "paper"
    c.steer.steps = 50
    c.steer.guidance = 3.5
    c.steer.height = c.steer.width = 1024
    c.steer.batch_size = 1
    return c
