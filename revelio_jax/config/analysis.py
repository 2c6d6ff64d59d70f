"""Sections of the configuration for the steps after training: steering, interpretation and tags."""

import dataclasses
import math

from revelio_jax.config.endpoints import check_endpoint
from revelio_jax.config.fields import field
from revelio_jax.errors import InputError

POSITIONS = ("all", "no_padding", "content")
SCORES = ("detection", "hard", "fuzzing")
RULES = ("auto", "paper", "contrast", "gated", "swap", "transport")


def check_schedule(name: str, timesteps: tuple[float, ...], ramp: tuple[float, ...]) -> None:
    """Raise InputError if the timesteps or the ramp of steering, fields of ``name``, are malformed."""
    if timesteps and not (len(timesteps) == 2 and timesteps[0] >= timesteps[1] >= 0):
        raise InputError(f"{name}.timesteps is {timesteps}; it must be two timesteps, larger first: 1000,600")
    if len(ramp) != 2 or not all(math.isfinite(factor) for factor in ramp):
        raise InputError(f"{name}.ramp is {ramp}; it must be two numbers, for example 1.0,0.5")


@dataclasses.dataclass(frozen=True)
class SteerConfig:
    """Sampling with and without steering, and measuring the effect."""

    rule: str = field(
        "auto",
        "how a concept changes activations; auto: transport for learned concepts, in the denoiser swap, else contrast",
        choices=RULES,
    )
    negative_branch: bool = field(True, "also steer the unconditional branch, in the opposite direction")
    pooled: bool = field(False, "SDXL, FLUX: also steer CLIP's pooled vector")
    positions: str = field(
        "all",
        "text encoders: tokens to steer; no_padding excludes padding; content also excludes BOS and EOS",
        choices=POSITIONS,
    )
    timesteps: tuple[float, ...] = field(
        (), "denoiser: first and last timestep to steer, for example 1000,600; empty: all"
    )
    ramp: tuple[float, ...] = field(
        (1.0, 1.0), "denoiser: factors on the strength at the first and at the last steered timestep"
    )
    mask: str | None = field(
        None, "denoiser: image whose white parts are steered and black parts are not; None: everywhere"
    )
    steps: int = field(50, "sampling steps", low=1)
    guidance: float = field(7.5, "guidance scale", low=0.0)
    height: int = field(512, "pixels, a multiple of 8", low=8, multiple=8)
    width: int = field(512, "pixels, a multiple of 8", low=8, multiple=8)
    batch_size: int = field(4, "images sampled together", low=1)
    prompts: str | None = field(None, "labeled prompts for learning concepts and for measuring steering")
    seed_column: str | None = field(
        None, "column of the prompts with the seed of each image, to which the flag --seed is added; None: --seed alone"
    )
    guidance_column: str | None = field(
        None, "column of the prompts with the guidance scale of each image; None: use guidance"
    )
    height_column: str | None = field(
        None, "column of the prompts with the height of the images in pixels; None: use height"
    )
    width_column: str | None = field(
        None, "column of the prompts with the width of the images in pixels; None: use width"
    )
    judge: str | None = field(
        None,
        "judge that labels images: the folder of a miniature's judge, nudenet, open_nsfw, q16, clip, vlm, or "
        "module:function; None: no measurement",
    )
    judge_settings: str | None = field(
        None, "settings of the judge: a JSON object, or a .json file that contains one; None: its defaults"
    )

    def __post_init__(self):
        """Raise InputError if fields contradict each other."""
        check_schedule("config.steer", self.timesteps, self.ramp)


@dataclasses.dataclass(frozen=True)
class InterpretConfig:
    """The data to record about each latent."""

    sae: str | None = field(
        None,
        "SAE folder; None: the run's export; neurons: treat each coordinate of the activations as a latent; random: a "
        "random dictionary of the size and k of the run's export",
    )
    top: int = field(20, "top samples recorded per latent", low=1)
    weaker: int = field(10, "samples recorded per latent from lower quantiles of its activations", low=0)
    neighbors: int = field(
        10, "neighbors recorded per latent: by firing on the same rows, and by decoder similarity", low=0
    )
    coactivation_rows: int = field(262_144, "rows used to count which latents fire together", low=0)
    cells: int = field(256, "cells in the map of a sample; larger maps are reduced by maxima", low=1)
    batch_size: int = field(4096, "rows encoded together", low=1)
    stratum: str | None = field(
        None, "column of the samples, for example language, whose values are reported separately; None: the timestep"
    )
    labels: tuple[str, ...] = field((), "label columns to measure purity on; empty: every column whose values repeat")
    embedder: str | None = field(
        None,
        "independent model for the monosemanticity score: the folder of a CLIP or DINO model, of a sentence encoder "
        "for texts, or of a miniature's judge; None: no score",
    )
    masks: str | None = field(
        None,
        "folder with a mask of the object in each image, white on black; None: do not measure how much of the "
        "activation is on the object",
    )
    random_samples: int = field(256, "random samples whose active latents are recorded", low=0)
    thumbnail: int = field(128, "pixels of the longer side of images in the report", low=16)


@dataclasses.dataclass(frozen=True)
class TagsConfig:
    """The vision-language model that labels latents; only the command tags uses it."""

    model: str | None = field(
        None,
        "hub id or folder of a transformers image-text-to-text model, or the model's name at the endpoint",
    )
    endpoint: str | None = field(
        None,
        "base URL of an OpenAI-compatible server, for example http://localhost:8000/v1; None: run the model here",
    )
    key: str | None = field(
        None,
        "NAME of the environment variable that holds the endpoint's key, never the key; None: send no key",
    )
    latents: int | None = field(100, "latents to label, drawn at random from those that fire; None: all", low=1)
    images: int = field(8, "top samples shown per latent", low=1)
    held_out: int = field(20, "other samples that test a label, half of them firing; 0: no scores", low=0)
    scores: tuple[str, ...] = field(
        ("detection",),
        "scores of a label: detection (does it apply to a sample?), hard (the same with silent samples on which "
        "neighbors of the latent fire), fuzzing (texts: are the marked words those that it describes?)",
    )
    max_tokens: int = field(256, "largest number of tokens in an answer; thinking models need more", low=1)
    parallel: int = field(4, "simultaneous requests to the endpoint", low=1, high=256)
    timeout: float = field(120.0, "seconds until a request is abandoned and repeated", low=0.01)

    def __post_init__(self):
        """Raise InputError for an unknown score, or a malformed name or URL, whose message never repeats a key."""
        for score in self.scores:
            if score not in SCORES:
                raise InputError(f"config.tags.scores has {score!r}; it must have only: {', '.join(SCORES)}")
        check_endpoint("config.tags", self.endpoint, self.key)
