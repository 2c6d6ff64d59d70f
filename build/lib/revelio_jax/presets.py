"""The autoencoders and the training of the two papers, as functions that a file in ``configs/`` calls.

    c = default()
    presets.steerers(c)
    c.sae.k = 64  # what an experiment changes comes after

Each sets all fields of ``c.sae`` and ``c.train`` that its paper gives. ``normalise`` stays at the project's
default, since neither paper says that rows are normalised: training then does not depend on the scale of a
site, and an export, into which it is folded, takes rows as they are. So does ``clip_norm``: neither speaks
of it.
"""

import ml_collections


def steerers(c: ml_collections.ConfigDict) -> None:
    """Concept Steerers (arXiv 2501.19066) on Stable Diffusion 1.4, unsafe concepts.

    Other models there differ in ``k`` and ``expansion`` alone.
    """
    c.sae.architecture = "topk"
    c.sae.k = 32
    c.sae.expansion = 4
    c.sae.k_aux = 256  # the text's figure; 32 is that of a released checkpoint
    c.sae.aux_alpha = 1 / 32
    c.sae.dead_after_rows = 10_000_000
    c.sae.dead_threshold = 1e-3
    c.sae.init = "unit"
    c.sae.b_dec_init = "geometric_median"
    c.sae.b_dec_init_rows = 32_768

    c.train.batch_size = 4096
    c.train.steps = 97_656  # 400M rows, the text's figure; 10,000 is the text's other one
    c.train.learning_rate = 4e-4
    c.train.warmup_steps = 0
    c.train.decay_share = 0.0
    c.train.adam_eps = 6.25e-10


def revelio(c: ml_collections.ConfigDict) -> None:
    """Revelio (arXiv 2411.16725) on pooled sites of a denoiser.

    Its top-k has no ReLU. With 81,920 latents the 32 largest of a row are positive, so the ReLU that
    follows the selection here changes nothing. It has no auxiliary loss. Its released code draws the
    decoder on its own and takes the encoder's fan from the latents, so that it begins sqrt(64) times
    smaller; here the decoder begins as the encoder's directions.
    """
    c.sae.architecture = "topk"
    c.sae.k = 32
    c.sae.expansion = 64
    c.sae.k_aux = 0
    c.sae.init = "kaiming_uniform"
    c.sae.b_dec_init = "mean"
    c.sae.b_dec_init_rows = 8192  # the first batch

    c.train.batch_size = 8192
    c.train.steps = 10_240  # 83,886,080 rows
    c.train.learning_rate = 4e-4
    c.train.warmup_steps = 500
    c.train.decay_share = 0.0  # constant
    c.train.adam_eps = 1e-8  # not stated; the default of torch, which the released code uses
