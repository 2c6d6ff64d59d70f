"""Sections of the configuration for training: data, autoencoder, optimization, mesh and logging."""

import dataclasses
import itertools

from revelio_jax.config.fields import field
from revelio_jax.errors import InputError

# Fields that only some architectures use.
ARCHITECTURES_OF = {
    "prefixes": ("topk", "batch_topk"),
    "multi_topk": ("topk", "batch_topk"),
    "encode_chunk": ("topk", "batch_topk"),
    "k_start": ("topk", "batch_topk", "jumprelu"),
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The rows to train on, and their order."""

    stores: tuple[str, ...] = field(
        (),
        "stores to train on, as LOCATION or WEIGHT:LOCATION; stores that match a pattern such as stores/flux_* "
        "are read as one; empty: config.extract.store",
    )
    site: str | None = field(None, "site of the stores to train on; None: the first one")
    held_out: float = field(0.05, "share of the chunks held out for evaluation", low=0.0, high=0.5)
    buffer_chunks: int = field(256, "chunks shuffled together in memory, over all processes", low=1)
    lanes: int = field(
        1, "parts of a batch that read separate chunks; must be a multiple of the number of processes", low=1
    )
    resident: str = field(
        "auto",
        "training rows that stay on the devices. yes: load all of them once, in the store's dtype; no: transfer every "
        "batch from the host; auto: yes on accelerators if they fit into half of the free memory, otherwise no",
        choices=("auto", "yes", "no"),
    )
    live: bool = field(
        False,
        "extract while training, without a store: a second process writes shards into the folder of the run, and the "
        "trainer deletes the shards that it no longer needs; held_out is then a share of the shards",
    )
    live_shards: int = field(
        24,
        "live: shards on the disk at most, each of config.extract.shard_samples samples; at most a third is held out; "
        "half of the others is shuffled together while the other half is extracted",
        low=3,
    )

    def __post_init__(self):
        """Raise InputError if fields contradict each other."""
        refusals = {
            f"config.data.stores is {','.join(self.stores)}; it must be empty": bool(self.stores),
            "config.data.held_out is 0; it must be above 0, because held-out rows give the mean": not self.held_out,
            f"config.data.lanes is {self.lanes}; it must be 1": self.lanes > 1,
            "config.data.resident is 'yes'; it must be auto or no": self.resident == "yes",
        }
        for text, is_refused in refusals.items():
            if self.live and is_refused:
                raise InputError(f"config.data.live is True and {text}")


@dataclasses.dataclass(frozen=True)
class SaeConfig:
    """The sparse autoencoder."""

    architecture: str = field(
        "topk",
        "latents that fire. topk: k per row; batch_topk: k per row on average over a batch; jumprelu: those above "
        "a learned threshold per latent, with a penalty that pulls their mean number to k; dense: any, for an "
        "undercomplete baseline",
        choices=("topk", "batch_topk", "jumprelu", "dense"),
    )
    k: int = field(32, "latents that fire on a row; for batch_topk and jumprelu on average", low=1)
    k_start: int | None = field(None, "k at the first step, annealed to k over k_anneal_steps; None: k", low=1)
    k_anneal_steps: int = field(0, "steps from k_start to k", low=0)
    expansion: int = field(4, "expansion factor: dictionary size divided by the width of the activation", low=1)
    latents: int | None = field(None, "dictionary size; None: width x expansion", low=1)
    prefixes: tuple[float, ...] = field(
        (), "Matryoshka: shares of the latents, increasing to 1; each prefix reconstructs the row by itself"
    )
    multi_topk: float = field(
        0.0, "weight of the reconstruction error with 4 k latents (MultiTopK), usually 0.125", low=0.0
    )
    k_aux: int = field(256, "dead latents that reconstruct the error of the others in the auxiliary loss (AuxK)", low=0)
    aux_alpha: float = field(
        1 / 4,
        "weight of the auxiliary loss. Papers use 1/32; a larger weight revives latents sooner, because Adam's second "
        "moments of a latent remember the gradients from before its death",
        low=0.0,
    )
    dead_after_rows: int = field(10_000_000, "a latent is dead after this many rows without firing", low=1)
    dead_threshold: float = field(1e-3, "a latent fires if its value is above this threshold", low=0.0)
    l0_coefficient: float = field(0.1, "jumprelu: weight of (L0 / k - 1)^2", low=0.0)
    jump_threshold: float = field(0.1, "jumprelu: initial threshold", low=1e-9)
    jump_bandwidth: float = field(
        0.1, "jumprelu: width of the window around a threshold that passes gradients", low=1e-9
    )
    normalize: str = field(
        "center_scale",
        "center_scale: center and scale rows by the store's statistics before the autoencoder; none: use rows "
        "as they are",
        choices=("center_scale", "none"),
    )
    init: str = field(
        "rows",
        "initial weights. unit: random unit vectors in decoder and encoder; fitted: the same, and the encoder is "
        "scaled to best reconstruct the first training rows; rows: like fitted, but three of four directions come from "
        "training rows; kaiming_uniform: a random encoder, and the decoder has its rows, scaled to norm 1",
        choices=("rows", "fitted", "unit", "kaiming_uniform"),
    )
    b_dec_init: str = field(
        "geometric_median",
        "initial decoder bias, computed from the first b_dec_init_rows rows",
        choices=("geometric_median", "mean", "zero"),
    )
    b_dec_init_rows: int = field(32_768, "rows used for the initial decoder bias", low=1)
    encode_chunk: int | None = field(
        None, "latents encoded at a time, which bounds memory for large dictionaries; None: all", low=1
    )
    products: str = field(
        "auto",
        "matrix products with codes. sparse: use only the rows of latents that fire; kernels: the same, with kernels "
        "for an H100; atomic: the same, but a GPU adds gradients in any order, so that a resumed run differs in the "
        "last bits; dense: multiply whole matrices; threshold: the same, with a kernel for top-k on one TPU; auto: "
        "sparse on a CPU, dense on a TPU, and on a GPU by the dictionary size, with kernels where they work",
        choices=("auto", "sparse", "kernels", "atomic", "dense", "threshold"),
    )
    matmul_dtype: str = field(
        "auto",
        "dtype of matrix product inputs; sums are float32. auto: float32 on a CPU, bfloat16 on accelerators",
        choices=("auto", "float32", "bfloat16"),
    )

    def __post_init__(self):
        """Raise InputError if fields contradict each other."""
        for name, architectures in ARCHITECTURES_OF.items():
            value = getattr(self, name)
            if value and self.architecture not in architectures:
                raise InputError(
                    f"config.sae.{name} is {value}; it needs config.sae.architecture "
                    f"{' or '.join(architectures)}, not {self.architecture}"
                )
        if self.encode_chunk and self.products in ("dense", "threshold"):
            raise InputError(
                f"config.sae.products is {self.products}; with config.sae.encode_chunk {self.encode_chunk} it must be "
                "auto, sparse, kernels or atomic, because dense products need the pre-activations of all latents"
            )
        shares = self.prefixes
        increasing = all(low < high for low, high in itertools.pairwise((0.0, *shares)))  # False for NaN
        if shares and not (increasing and shares[-1] == 1.0):
            raise InputError(
                f"config.sae.prefixes is {shares}; it must increase, from above 0, and end at 1.0, for example 0.25,1.0"
            )
        if self.k_start and not self.k_anneal_steps:
            raise InputError(f"config.sae.k_start is {self.k_start}; config.sae.k_anneal_steps must then be at least 1")
        if self.k_anneal_steps and not self.k_start:
            raise InputError(f"config.sae.k_anneal_steps is {self.k_anneal_steps}; config.sae.k_start must then be set")
        if self.k_start and self.k_start < self.k:
            raise InputError(
                f"config.sae.k_start is {self.k_start}; it must be at least config.sae.k, {self.k}, or None"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimization and checkpoints."""

    steps: int = field(10_000, "optimizer steps", low=1)
    batch_size: int = field(4096, "rows per step", low=1)
    learning_rate: float = field(4e-4, "peak learning rate of Adam", low=0.0)
    warmup_steps: int = field(0, "steps of linear warm-up", low=0)
    decay: str = field(
        "linear", "shape of the decay of the learning rate to 0 at the end", choices=("linear", "cosine")
    )
    decay_share: float = field(0.0, "share of the steps, at the end, with a decaying rate", low=0.0, high=1.0)
    adam_eps: float = field(6.25e-10, "epsilon of Adam", low=0.0)
    first_moment_dtype: str = field(
        "float32",
        "dtype of Adam's first moments; bfloat16 saves 4 bytes of memory per parameter and time on accelerators",
        choices=("float32", "bfloat16"),
    )
    clip_norm: float | None = field(
        1e-3,
        "scale gradients with a larger norm down to this norm; None: never. The default applies to nearly every "
        "step, so that the large gradients of the first steps do not dominate Adam's second moments",
        low=1e-30,
    )
    ema: float | None = field(
        None,
        "decay of a moving average of the parameters, which evaluation and export then use; None: no average",
        low=0.0,
        high=0.999999,  # at 1 it would never move
    )
    steps_per_dispatch: int | None = field(
        None,
        "steps in one call of the compiled program; a call also ends at every checkpoint. None: 1 on a CPU, on "
        "accelerators as many as make a call last some milliseconds",
        low=1,
    )
    seed: int = field(0, "seed of the initial parameters and of the order of rows", low=0)
    checkpoint_every: int = field(1000, "steps between checkpoints", low=1)
    keep: int = field(3, "newest checkpoints to keep, in addition to the one with the lowest FVU", low=1)
    use: str = field("newest", "checkpoint to evaluate and export", choices=("newest", "best"))
    resume: bool = field(False, "continue the run from its newest checkpoint")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices and processes."""

    data: int | None = field(1, "devices along the data axis; None: all remaining devices", low=1)
    feature: int | None = field(None, "devices along the latents' axis; None: all remaining devices", low=1)
    distributed: bool = field(
        False, "multi-process run; peers are detected on a cluster, otherwise set the next three fields"
    )
    coordinator: str | None = field(None, "host:port of the first process; all processes get the same value")
    processes: int = field(1, "number of processes", low=1)
    process: int = field(0, "number of this process, from 0", low=0)
    timeout: int = field(
        30, "seconds without an answer after which another process counts as lost, which ends the run", low=1
    )
    start_timeout: int = field(300, "seconds to wait for the other processes at the start", low=1)


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Metrics during training."""

    every: int = field(50, "steps between lines of metrics.jsonl", low=1)
    tensorboard: bool = field(False, "also write metrics for TensorBoard, to the folder tensorboard of the run")
    wandb: str | None = field(None, "wandb project that also receives the metrics; None: do not use wandb")
