"""Sections of the configuration for extraction: the pipeline and the activations to record."""

import dataclasses

from revelio_jax.config.fields import field
from revelio_jax.errors import InputError

FAMILIES = ("sd", "sdxl", "flux", "dit", "text")
DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The pipeline to extract from and to steer."""

    id: str | None = field(None, "hub id or folder of a diffusers pipeline")
    revision: str | None = field(None, "hub revision; None: the newest")
    family: str = field("sd", "family of the pipeline; text: a text encoder without a pipeline", choices=FAMILIES)
    dtype: str = field("float32", "dtype of the weights", choices=DTYPES)
    device: str = field("auto", "torch device; auto picks cuda, then mps, then cpu")
    compile: bool = field(False, "compile each repeated block with torch.compile")
    offload: str = field(
        "none",
        "keep weights on the CPU until used. model: move one component at a time; sequential: "
        "one layer at a time",
        choices=("none", "model", "sequential"),
    )

    def __post_init__(self):
        """Raise InputError if fields contradict each other."""
        if self.compile and self.offload == "sequential":
            raise InputError(
                "config.model.compile is True and config.model.offload is 'sequential'; compiled blocks would "
                "read offloaded weights; with compile, offload must be none or model"
            )


@dataclasses.dataclass(frozen=True)
class ExtractConfig:
    """The activations to extract, and the store to write."""

    mode: str = field(
        "text",
        "text: run the text encoders alone; generate: record the denoiser while it generates images of the "
        "prompts; noised: run the denoiser once on noised images of config.extract.images",
        choices=("text", "generate", "noised"),
    )
    prompts: str | None = field(
        None, "prompt file: .txt, .csv, .jsonl or .parquet; for the family dit its prompts are class names"
    )
    prompt_column: str = field("prompt", "column with the prompt; every other column is a label")
    shuffle: bool = field(
        False,
        "shuffle the prompts, always into the same order; otherwise the chunks that training holds out from "
        "a sorted file contain prompts of one kind only",
    )
    sites: tuple[str, ...] = field(
        (), "hook points, for example clip.layer.9; clip_l.layer.10+clip_g.layer.28 joins two, token by token"
    )
    positions: str = field(
        "auto",
        "token positions to keep. all; no_padding: drop padding; content: also drop BOS and EOS; auto: all "
        "for CLIP, no_padding for other encoders",
        choices=("auto", "all", "no_padding", "content"),
    )
    images: str | None = field(
        None,
        "noised: folder of images, whose subfolders are labels; or a dataset of the package datasets: a saved "
        "folder, a .parquet file or a hub name",
    )
    image_column: str = field("image", "noised: dataset column with the image")
    label_column: str | None = field("label", "noised: dataset column with the label; None: no labels")
    split: str = field("train", "noised: split of the dataset")
    timesteps: tuple[int, ...] = field(
        (),
        "noised: timesteps whose noise is added; generate: timesteps to record, empty: the whole schedule",
    )
    value: str = field(
        "output",
        "generate, noised. output: the output of a block; difference: its output minus its input",
        choices=("output", "difference"),
    )
    pool: str = field(
        "none",
        "generate, noised. none: one row per position; mean: one row, the mean over the positions",
        choices=("none", "mean"),
    )
    seed: int = field(
        0,
        "generate, noised: seed of the first sample, increased by 1 for each next sample; a prompt column called seed, "
        "or seed_column, overrides it",
        low=0,
        high=2**62,  # the seeds of all samples must fit 64 bits
    )
    seed_column: str | None = field(
        None, "generate: prompt column with the seed of each prompt, for example sd_seed; None: seed, if it exists"
    )
    guidance_column: str | None = field(
        None, "generate: prompt column with the guidance scale of each prompt; None: use guidance"
    )
    height_column: str | None = field(
        None, "generate: prompt column with the height of each image in pixels; None: use height"
    )
    width_column: str | None = field(
        None, "generate: prompt column with the width of each image in pixels; None: use width"
    )
    steps: int = field(50, "generate: sampling steps", low=1)
    guidance: float = field(7.5, "generate, and noised for FLUX: guidance scale", low=0.0)
    true_cfg: float = field(1.0, "generate: true_cfg_scale of FLUX; 1: no negative prompt runs", low=0.0)
    prompt: str = field("", "noised: prompt for every image")
    negative_prompt: str = field("", "generate: negative prompt")
    height: int = field(512, "generate, noised: pixels, a multiple of 8", low=8, high=16_384, multiple=8)
    width: int = field(512, "generate, noised: pixels, a multiple of 8", low=8, high=16_384, multiple=8)
    save_images: bool = field(False, "generate: save the images as STORE/images/ID.png")
    save_latents: bool = field(False, "generate: save the final latents as STORE/latents/ID.npy")
    batch_size: int = field(64, "samples per forward pass", low=1)
    store: str | None = field(None, "store to write: a folder, gs:// or s3://")
    dtype: str = field("float32", "dtype of the store", choices=DTYPES)
    shard_samples: int = field(512, "samples per shard, the unit of writing and resuming", low=1)
    chunk_rows: int = field(
        256,
        "rows per inner chunk, the unit of reading",
        low=1,
        high=1_000_000,  # a reader holds a whole chunk in memory
    )
    worker: int | None = field(None, "number of this worker, from 0; None: taken from torchrun or SLURM", low=0)
    workers: int | None = field(
        None, "processes that share the shards; None: taken from torchrun or SLURM, otherwise 1", low=1
    )

    def __post_init__(self):
        """Raise InputError if fields contradict each other."""
        if self.worker is not None:
            if self.workers is None:
                raise InputError(f"config.extract.worker is {self.worker}; set config.extract.workers too")
            if self.worker >= self.workers:
                raise InputError(
                    f"config.extract.worker is {self.worker}; it must be below config.extract.workers, {self.workers}"
                )
        if self.workers is not None and self.workers > 1 and self.worker is None:
            raise InputError(
                f"config.extract.workers is {self.workers}; set config.extract.worker too, from 0 to {self.workers - 1}"
            )
