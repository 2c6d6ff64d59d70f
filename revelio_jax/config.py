"""The one configuration that every command reads: its fields, their defaults, their checks.

A file in ``configs/`` starts from :func:`default` and sets what its experiment changes. Commands read it
with :func:`revelio_jax.cli.parse`, which returns these frozen dataclasses; below that boundary
functions take explicit arguments.
"""

import dataclasses
import difflib
import itertools
import json
import math
import re
import types
import typing
import urllib.parse

import ml_collections

from revelio_jax.errors import InputError


def _field(default, help: str, *, choices=None, low=None, high=None, multiple=1):
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "multiple": multiple}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The pipeline whose activations are taken and that is steered."""

    id: str = _field("", "hub id or folder of a diffusers pipeline")
    revision: str = _field("", "hub revision; empty is the newest")
    family: str = _field(
        "sd",
        "layout of the pipeline; text is a text encoder alone",
        choices=("sd", "sdxl", "flux", "dit", "text"),
    )
    dtype: str = _field("float32", "dtype of its weights", choices=("float32", "float16", "bfloat16"))
    device: str = _field("auto", "torch device; auto is cuda, else mps, else cpu")
    compile: bool = _field(False, "extraction: torch.compile each repeated block")
    offload: str = _field(
        "none",
        "extraction: weights wait on the CPU; model: for their part to run, sequential: for their layer",
        choices=("none", "model", "sequential"),
    )

    def __post_init__(self):
        """Raise InputError where fields do not go together."""
        if self.compile and self.offload == "sequential":
            raise InputError(
                "config.model.compile is True and config.model.offload 'sequential': what is compiled reads "
                "weights that are not there; allowed with compile: none, model"
            )


@dataclasses.dataclass(frozen=True)
class ExtractConfig:
    """Activations to take, and the store they are written to."""

    mode: str = _field(
        "text",
        "text: text encoders alone; generate: the denoiser while it makes pictures of the prompts; "
        "noised: one pass of the denoiser on noised pictures of config.extract.images",
        choices=("text", "generate", "noised"),
    )
    prompts: str = _field(
        "", "prompt file: .txt, .csv, .jsonl or .parquet; for the family dit its prompts are class names"
    )
    prompt_column: str = _field("prompt", "column with the prompt; every other column is a label")
    shuffle: bool = _field(
        False,
        "prompts in a random order, always the same: in a sorted file, the chunks that training holds out "
        "would be prompts of a kind",
    )
    sites: tuple[str, ...] = _field(
        (), "hook points, such as clip.layer.9; clip_l.layer.10+clip_g.layer.28 joins two, token by token"
    )
    positions: str = _field(
        "auto",
        "token positions kept: all; no_padding drops padding; content also drops BOS and EOS; auto is all of "
        "CLIP and no_padding of other encoders",
        choices=("auto", "all", "no_padding", "content"),
    )
    images: str = _field(
        "",
        "noised: a folder of pictures, whose folders are labels; or a dataset of the package datasets: "
        "a saved folder, a .parquet file, a hub name",
    )
    image_column: str = _field("image", "noised: column of the picture in a dataset")
    label_column: str = _field("label", "noised: column of the label in a dataset; empty is none")
    split: str = _field("train", "noised: split of a dataset")
    timesteps: tuple[int, ...] = _field(
        (), "noised: timesteps whose noise is added; generate: those kept, empty is the whole schedule"
    )
    value: str = _field(
        "output",
        "generate, noised: what a block returns, or its difference from what went in",
        choices=("output", "difference"),
    )
    pool: str = _field(
        "none", "generate, noised: a row a position, or their mean as one row", choices=("none", "mean")
    )
    seed: int = _field(
        0,
        "generate, noised: seed of the first sample, the next has the next; a column seed goes before",
        low=0,
        high=2**62,  # those of all samples fit 64 bits
    )
    steps: int = _field(50, "generate: sampling steps", low=1)
    guidance: float = _field(7.5, "generate, and noised for FLUX: guidance scale", low=0.0)
    true_cfg: float = _field(1.0, "generate: scale of FLUX's negative prompt; 1 runs none", low=0.0)
    prompt: str = _field("", "noised: the prompt of every picture")
    negative_prompt: str = _field("", "generate: the negative prompt")
    height: int = _field(512, "generate, noised: pixels, a multiple of 8", low=8, high=16_384, multiple=8)
    width: int = _field(512, "generate, noised: pixels, a multiple of 8", low=8, high=16_384, multiple=8)
    save_images: bool = _field(False, "generate: keep the pictures, as STORE/images/ID.png")
    save_latents: bool = _field(False, "generate: keep the final latents, as STORE/latents/ID.npy")
    batch_size: int = _field(64, "samples a forward pass", low=1)
    store: str = _field("", "the store that is written: a folder, gs://, s3://")
    dtype: str = _field("float32", "dtype of the store", choices=("float32", "float16", "bfloat16"))
    shard_samples: int = _field(512, "samples a shard, the unit of writing and resuming", low=1)
    chunk_rows: int = _field(
        256,
        "rows an inner chunk, the unit of reading",
        low=1,
        high=1_000_000,  # a chunk is in memory whole, however few of its rows there are
    )
    worker: int = _field(-1, "number of this worker, from 0; -1 is what torchrun or SLURM says", low=-1)
    workers: int = _field(
        0, "processes that share the shards; 0 is what torchrun or SLURM says, else 1", low=0
    )

    def __post_init__(self):
        """Raise InputError where fields do not go together."""
        if self.worker >= 0 and not self.workers:
            raise InputError(
                f"config.extract.worker is {self.worker}; config.extract.workers must then be given"
            )
        if self.worker >= self.workers and (self.worker, self.workers) != (-1, 0):
            raise InputError(
                f"config.extract.worker is {self.worker}; it must be below config.extract.workers, "
                f"{self.workers}"
            )
        if self.workers > 1 and self.worker < 0:
            raise InputError(
                f"config.extract.workers is {self.workers}; config.extract.worker must then be given, "
                f"from 0 to {self.workers - 1}"
            )


# Fields that only some architectures have a use for.
VARIANTS_OF = {
    "prefixes": ("topk", "batch_topk"),
    "multi_topk": ("topk", "batch_topk"),
    "encode_chunk": ("topk", "batch_topk"),
    "k_start": ("topk", "batch_topk", "jumprelu"),
}


@dataclasses.dataclass(frozen=True)
class SaeConfig:
    """The sparse autoencoder."""

    architecture: str = _field(
        "topk",
        "topk: k latents a row; batch_topk: k a row on average of a batch; jumprelu: a learned threshold a "
        "latent, k a row on average by a penalty; dense: every latent, for an undercomplete baseline",
        choices=("topk", "batch_topk", "jumprelu", "dense"),
    )
    k: int = _field(32, "latents that may fire on a row", low=1)
    k_start: int = _field(0, "k of the first step, which falls to k over k_anneal_steps; 0 is k", low=0)
    k_anneal_steps: int = _field(0, "steps from k_start to k", low=0)
    expansion: int = _field(4, "dictionary size over the width of the activation", low=1)
    latents: int = _field(0, "dictionary size; 0 is the width x expansion", low=0)
    prefixes: tuple[float, ...] = _field(
        (), "Matryoshka: shares of the latents, rising to 1, whose first latents reconstruct on their own"
    )
    multi_topk: float = _field(0.0, "weight of the error of 4 k latents (MultiTopK), often 0.125", low=0.0)
    k_aux: int = _field(256, "dead latents that reconstruct the error in the auxiliary loss", low=0)
    aux_alpha: float = _field(1 / 32, "weight of the auxiliary loss", low=0.0)
    dead_after_rows: int = _field(10_000_000, "rows without firing until a latent is dead", low=1)
    dead_threshold: float = _field(1e-3, "a latent fires where its value is above this", low=0.0)
    l0_coefficient: float = _field(0.1, "jumprelu: weight of (L0 / k - 1)^2", low=0.0)
    jump_threshold: float = _field(0.1, "jumprelu: initial threshold", low=1e-9)
    jump_bandwidth: float = _field(0.1, "jumprelu: width around a threshold that its gradient sees", low=1e-9)
    normalise: str = _field(
        "centre_scale",
        "centre and scale rows by the store's statistics before the autoencoder, or leave them",
        choices=("centre_scale", "none"),
    )
    init: str = _field(
        "fitted",
        "initial encoder: unit, the decoder's rows, which are unit rows; fitted, those times the one factor "
        "that reconstructs the first rows best; kaiming_uniform, of which the decoder's are the unit rows",
        choices=("fitted", "unit", "kaiming_uniform"),
    )
    b_dec_init: str = _field(
        "geometric_median",
        "initial decoder bias, from the first b_dec_init_rows rows",
        choices=("geometric_median", "mean", "zero"),
    )
    b_dec_init_rows: int = _field(32_768, "rows for the initial decoder bias", low=1)
    encode_chunk: int = _field(
        0, "latents that are encoded at a time, which bounds memory for large dictionaries; 0 is all", low=0
    )
    products: str = _field(
        "auto",
        "products with codes: sparse reads and writes the rows of the latents that fire; dense multiplies "
        "whole matrices; auto is sparse on a CPU, dense on accelerators",
        choices=("auto", "sparse", "dense"),
    )
    matmul_dtype: str = _field(
        "float32", "dtype of the products' inputs; sums are float32", choices=("float32", "bfloat16")
    )

    def __post_init__(self):
        """Raise InputError where fields do not go together."""
        for name, architectures in VARIANTS_OF.items():
            value = getattr(self, name)
            if value and self.architecture not in architectures:
                raise InputError(
                    f"config.sae.{name} is {value}; config.sae.architecture must then be "
                    f"{' or '.join(architectures)}, not {self.architecture}"
                )
        shares = self.prefixes
        rising = all(low < high for low, high in itertools.pairwise((0.0, *shares)))  # no NaN rises
        if shares and not (rising and shares[-1] == 1.0):
            raise InputError(
                f"config.sae.prefixes is {shares}; it must rise, from above 0, and end at 1.0, as (0.25, 1.0)"
            )
        if self.k_start and not self.k_anneal_steps:
            raise InputError(
                f"config.sae.k_start is {self.k_start}; config.sae.k_anneal_steps must then be at least 1"
            )
        if self.k_anneal_steps and not self.k_start:
            raise InputError(
                f"config.sae.k_anneal_steps is {self.k_anneal_steps}; config.sae.k_start must then be given"
            )
        if self.k_start and self.k_start < self.k:
            raise InputError(
                f"config.sae.k_start is {self.k_start}; it must be at least config.sae.k, {self.k}, or 0"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation, checkpoints, and where the run is kept."""

    run: str = _field("", "folder of the run: config, checkpoints, metrics, export, pictures")
    stores: tuple[str, ...] = _field(
        (),
        "stores to train on, as LOCATION or WEIGHT:LOCATION; a location may be a pattern of folders, as "
        "stores/flux_*, whose stores are read as one; empty is config.extract.store",
    )
    site: str = _field("", "site of the stores to train on; empty is the first")
    steps: int = _field(10_000, "optimiser steps", low=1)
    batch_size: int = _field(4096, "rows a step", low=1)
    learning_rate: float = _field(4e-4, "peak learning rate of Adam", low=0.0)
    warmup_steps: int = _field(0, "steps of linear warm-up", low=0)
    decay: str = _field("linear", "how the rate falls to 0 at the end", choices=("linear", "cosine"))
    decay_share: float = _field(0.0, "last share of the steps in which it falls", low=0.0, high=1.0)
    adam_eps: float = _field(6.25e-10, "epsilon of Adam", low=0.0)
    clip_norm: float = _field(
        1e-3,
        "gradients of a larger norm are scaled down to it; 0 is never. The default nearly always applies, so "
        "that Adam's second moments do not remember how steep the loss began",
        low=0.0,
    )
    ema: float = _field(
        0.0,
        "decay of a moving average of the parameters, which is then what is evaluated",
        low=0.0,
        high=0.999999,  # at 1 it would never move
    )
    seed: int = _field(0, "seed of initialisation and of the order of rows", low=0)
    held_out: float = _field(0.05, "share of the chunks kept for evaluation", low=0.0, high=0.5)
    buffer_chunks: int = _field(256, "chunks that are shuffled together in memory, over all processes", low=1)
    lanes: int = _field(
        1,
        "parts of a batch, each with chunks of its own; a multiple of the processes, which share them",
        low=1,
    )
    mesh_data: int = _field(1, "devices along the data axis; -1 is all that are left", low=-1)
    mesh_feature: int = _field(-1, "devices along the latents' axis; -1 is all that are left", low=-1)
    distributed: bool = _field(False, "join other processes; a cluster says which, or the next three do")
    coordinator: str = _field("", "host:port of the first process, the same in every process")
    processes: int = _field(1, "number of processes", low=1)
    process: int = _field(0, "number of this process, from 0", low=0)
    log_every: int = _field(50, "steps between lines of metrics.jsonl", low=1)
    tensorboard: bool = _field(False, "also write the metrics for TensorBoard, to runs/<name>/tensorboard")
    wandb: str = _field("", "wandb project that the metrics also go to; empty is none")
    checkpoint_every: int = _field(1000, "steps between checkpoints", low=1)
    keep: int = _field(3, "newest checkpoints that are kept, beside the one with the lowest FVU", low=1)
    use: str = _field("newest", "checkpoint that is evaluated and exported", choices=("newest", "best"))
    resume: bool = _field(False, "continue the run at its last checkpoint")


RULES = ("auto", "paper", "contrast", "gated", "swap")


@dataclasses.dataclass(frozen=True)
class SteerConfig:
    """Sampling with and without steering, and how its effect is measured."""

    rule: str = _field(
        "auto",
        "how a concept changes activations; auto: swap where labelled prompts taught it, else contrast",
        choices=RULES,
    )
    negative_branch: bool = _field(True, "also steer the unconditional branch, the other way")
    pooled: bool = _field(False, "SDXL, FLUX: also steer the vector that CLIP pools the prompt to")
    positions: str = _field(
        "all",
        "text encoders: tokens that are steered; content is without BOS, EOS and padding",
        choices=("all", "no_padding", "content"),
    )
    timesteps: tuple[float, ...] = _field(
        (),
        "denoiser: steered from one timestep down to another, as (1000, 600); empty is all",
    )
    ramp: tuple[float, ...] = _field(
        (1.0, 1.0), "denoiser: what strengths are multiplied by at the first timestep, and at the last"
    )
    mask: str = _field("", "denoiser: a picture whose white parts are steered, black are left")
    steps: int = _field(50, "sampling steps", low=1)
    guidance: float = _field(7.5, "guidance scale", low=0.0)
    height: int = _field(512, "pixels, a multiple of 8", low=8, multiple=8)
    width: int = _field(512, "pixels, a multiple of 8", low=8, multiple=8)
    batch_size: int = _field(4, "pictures sampled together", low=1)
    prompts: str = _field("", "labelled prompts to find gated latents with and to measure on")
    judge: str = _field("", "folder of the judge that labels pictures; empty measures nothing")

    def __post_init__(self):
        """Raise InputError where fields do not go together."""
        if self.timesteps and not (len(self.timesteps) == 2 and self.timesteps[0] >= self.timesteps[1] >= 0):
            raise InputError(
                f"config.steer.timesteps is {self.timesteps}; it must be two that fall, such as (1000, 600)"
            )
        if len(self.ramp) != 2 or not all(math.isfinite(factor) for factor in self.ramp):
            raise InputError(f"config.steer.ramp is {self.ramp}; it must be two numbers, such as (1.0, 0.5)")


@dataclasses.dataclass(frozen=True)
class InterpretConfig:
    """What is kept of every latent, and who is asked what it means."""

    sae: str = _field(
        "", "SAE folder; empty is the run's export; neurons: each coordinate of the activations is a latent"
    )
    top: int = _field(20, "strongest samples that are kept of a latent", low=1)
    weaker: int = _field(10, "samples that are drawn from lower quantiles of a latent", low=0)
    neighbours: int = _field(
        10, "latents kept that fire with a latent, and that its decoder is close to", low=0
    )
    coactivation_rows: int = _field(
        262_144, "rows from which it is counted which latents fire together", low=0
    )
    cells: int = _field(256, "cells of the map of a sample; a larger map is brought to them by maxima", low=1)
    batch_size: int = _field(4096, "rows that are encoded together", low=1)
    stratum: str = _field(
        "", "column of the samples, such as language, whose values are told apart; empty is the timestep"
    )
    labels: tuple[str, ...] = _field(
        (), "label columns that purity is measured of; empty is every one that names a class more than once"
    )
    drawn: int = _field(256, "samples drawn at random, of which it is kept which latents fire on them", low=0)

    # The report's pictures.
    thumbnail: int = _field(128, "pixels of the larger side of a picture in the report", low=16)

    # Who is asked what latents mean; nothing else needs it.
    tag_model: str = _field(
        "", "tags: hub id or folder of a transformers image-text-to-text model, or the endpoint's name of one"
    )
    tag_endpoint: str = _field(
        "", "tags: base URL of an OpenAI-compatible server, as http://localhost:8000/v1; empty runs the model"
    )
    tag_key: str = _field(
        "", "tags: NAME of the environment variable with the endpoint's key, never the key; empty sends none"
    )
    tag_latents: int = _field(
        100, "tags: latents that are asked about, drawn at random of those that fire; 0 is all", low=0
    )
    tag_pictures: int = _field(8, "tags: strongest samples that are shown of a latent", low=1)
    tag_held_out: int = _field(
        20,
        "tags: samples not shown, half of them firing, that a label is tried on; 0 gives no scores",
        low=0,
    )
    tag_tokens: int = _field(256, "tags: tokens of an answer at most; thinking models need more", low=1)
    tag_parallel: int = _field(4, "tags: requests to the endpoint at a time", low=1, high=256)
    tag_timeout: float = _field(120.0, "tags: seconds until a request is given up and repeated", low=0.01)

    def __post_init__(self):
        """Raise InputError where a field is no name or URL; a key in its place is not told on."""
        if self.tag_key and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.tag_key):
            raise InputError(
                "config.interpret.tag_key is no name of an environment variable (letters, digits, "
                "underscores); it names the variable that holds the key, as OPENAI_API_KEY, never the key"
            )
        if self.tag_endpoint:
            url = urllib.parse.urlsplit(self.tag_endpoint)
            if url.username or url.password or url.query:
                raise InputError(
                    "config.interpret.tag_endpoint is more than scheme, host, port and path; a key "
                    "belongs into an environment variable, which config.interpret.tag_key names"
                )
            if url.scheme not in ("http", "https") or not url.hostname:
                raise InputError(
                    f"config.interpret.tag_endpoint is {self.tag_endpoint!r}; it must be a URL, as "
                    "http://localhost:8000/v1"
                )


@dataclasses.dataclass(frozen=True)
class Config:
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    extract: ExtractConfig = dataclasses.field(default_factory=ExtractConfig)
    sae: SaeConfig = dataclasses.field(default_factory=SaeConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    steer: SteerConfig = dataclasses.field(default_factory=SteerConfig)
    interpret: InterpretConfig = dataclasses.field(default_factory=InterpretConfig)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


SECTIONS = {field.name: field.default_factory for field in dataclasses.fields(Config)}


def default() -> ml_collections.ConfigDict:
    """Every field with its default, for a config file to change."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def resolve(config: ml_collections.ConfigDict) -> Config:
    """Check every field of a ConfigDict and freeze it. Raises InputError."""
    unknown = sorted(set(config) - set(SECTIONS))
    if unknown:
        raise InputError(f"config.{unknown[0]} is no section; sections: {', '.join(SECTIONS)}")
    return Config(**{name: _section(name, cls, config.get(name, {})) for name, cls in SECTIONS.items()})


def _section(name: str, cls: type, given: typing.Mapping) -> typing.Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in given:
        if key not in fields:
            raise InputError(f"config.{name}.{key} is no field; {did_you_mean(key, fields)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in given.items():
        values[key] = _checked(f"config.{name}.{key}", value, hints[key], fields[key].metadata)
    return cls(**values)


def _checked(name: str, value, hint, metadata):
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(hint, types.GenericAlias):  # tuple[str, ...] and its like
        of = typing.get_args(hint)[0]
        value = value if isinstance(value, list | tuple) else (value,)
        if of is float:
            value = [float(v) if type(v) is int else v for v in value]
        if not all(type(v) is of for v in value):
            what = {str: "strings", float: "numbers", int: "whole numbers"}[of]
            raise InputError(f"{name} is {value!r}; it must be a tuple of {what}")
        return tuple(value)
    if type(value) is not hint:
        raise InputError(f"{name} is {value!r}; it must be of type {hint.__name__}")
    choices, low, high = metadata["choices"], metadata["low"], metadata["high"]
    if choices and value not in choices:
        raise InputError(f"{name} is {value!r}; allowed: {', '.join(choices)}")
    if low is not None and not value >= low:  # also refuses NaN
        raise InputError(f"{name} is {value}; it must be at least {low}")
    if high is not None and value > high:
        raise InputError(f"{name} is {value}; it must be at most {high}")
    if metadata["multiple"] > 1 and value % metadata["multiple"]:
        raise InputError(f"{name} is {value}; it must be a multiple of {metadata['multiple']}")
    return value


def did_you_mean(key: str, names: typing.Iterable[str]) -> str:
    """What to say of a field that is not there."""
    names = list(names)
    close = difflib.get_close_matches(key, names, 1)
    return f"did you mean {close[0]}?" if close else f"fields: {', '.join(names)}"
