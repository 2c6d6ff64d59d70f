"""Settings that several configs share, as functions that a config calls: the SAEs and training of the two papers.

    c = default()
    presets.steerers(c)
    c.sae.k = 64  # changes of an experiment come after the preset

Each function takes the ConfigDict of :func:`revelio_jax.config.default`. Those of the papers set the fields of
``c.sae`` and ``c.train`` that the paper states. ``normalize`` and ``clip_norm`` keep the project's defaults, because
neither paper mentions them. With normalization, training does not depend on the scale of a hook point. The export
folds the normalization in, so an exported SAE takes unnormalized rows.
"""

import typing


def steerers(c: typing.Any) -> None:
    """Concept Steerers (arXiv 2501.19066) on Stable Diffusion 1.4, unsafe concepts.

    The paper's other models differ only in ``k`` and ``expansion``.
    """
    c.sae.architecture = "topk"
    c.sae.k = 32
    c.sae.expansion = 4
    c.sae.k_aux = 256  # stated in the paper; a released checkpoint has 32
    c.sae.aux_alpha = 1 / 32
    c.sae.dead_after_rows = 10_000_000
    c.sae.dead_threshold = 1e-3
    c.sae.init = "unit"
    c.sae.b_dec_init = "geometric_median"
    c.sae.b_dec_init_rows = 32_768

    c.train.batch_size = 4096
    c.train.steps = 97_656  # 400M rows, stated in the paper, which also states 10,000 steps
    c.train.learning_rate = 4e-4
    c.train.warmup_steps = 0
    c.train.decay_share = 0.0
    c.train.adam_eps = 6.25e-10


def revelio(c: typing.Any) -> None:
    """Revelio (arXiv 2411.16725) on pooled activations of a denoiser.

    The paper's top-k has no ReLU. The 32 largest of 81,920 latents are positive, so the ReLU after the selection here
    changes nothing. The paper has no auxiliary loss. Its released code initializes the decoder independently and
    takes the encoder's fan-in from the number of latents, so the initial encoder is sqrt(64) times smaller. Here the
    decoder starts as the transposed encoder.
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


def miniature_sd(c: typing.Any) -> None:
    """Set the miniature Stable Diffusion, its images, and how it is steered and judged."""
    c.model.id = "extract/miniature/sd"
    c.extract.height = c.extract.width = 32

    c.steer.steps = 15
    c.steer.guidance = 2.5
    c.steer.height = c.steer.width = 32
    c.steer.batch_size = 64
    c.steer.prompts = "extract/miniature/sd/prompts.csv"
    c.steer.judge = "extract/miniature/sd"


def miniature_benchmark(c: typing.Any) -> None:
    """Set the tasks of `revelio benchmark` on a miniature, and the methods that every family supports."""
    c.benchmark.concepts = ("style=glossy 3d", "style=flat", "category=heart")
    c.benchmark.methods = (
        "steer rule=swap",
        "steer rule=transport",
        "steer rule=contrast learned=text",
        "steer rule=paper learned=text",
        "difference_of_means",
        "random_direction",
        "negative_prompt",
    )
    c.benchmark.strengths = (-0.5, -1.0, -1.5, -2.5)
    c.benchmark.prompts = 60
    c.benchmark.add = False
    c.benchmark.repetitions = 3
