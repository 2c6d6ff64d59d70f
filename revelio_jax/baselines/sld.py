"""Safe Latent Diffusion (Schramowski et al., arXiv 2211.05105), by diffusers' own StableDiffusionPipelineSafe.

With predictions u (empty prompt), p (prompt) and c (safety concept) of one step i, elementwise:

    mu = min(1, s |p - c|) where p - c < threshold, else 0
    gamma = mu (c - u) + momentum_scale nu
    nu <- momentum_beta nu + (1 - momentum_beta) gamma
    prediction = u + guidance (p - u - [i >= warmup_steps] gamma)
"""

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Generator, Sequence

import diffusers
import numpy as np
import torch

from revelio_jax.baselines import concept, copies
from revelio_jax.baselines.sampler import Sampler
from revelio_jax.baselines.settings import (
    check_choice,
    check_family,
    check_guidance,
    check_number,
    check_phrases,
    check_unconditional_branch,
    check_weights_in_memory,
    check_whole,
)
from revelio_jax.errors import InputError
from revelio_jax.pipelines.sampling import Samples, sample

NAME = "sld"
FAMILIES = ("sd",)

# Names of StableDiffusionPipelineSafe's arguments by the names of our settings.
ARGUMENTS = {
    "scale": "sld_guidance_scale",
    "warmup_steps": "sld_warmup_steps",
    "threshold": "sld_threshold",
    "momentum_scale": "sld_momentum_scale",
    "momentum_beta": "sld_mom_beta",
}
# Hyp-Weak to Hyp-Max of the paper. SafetyConfig.WEAK of diffusers has a scale of 20.
PRESETS: dict[str, tuple[float, int, float, float, float]] = {
    "weak": (200, 15, 0.0, 0.0, 0.0),
    "medium": (1000, 10, 0.01, 0.3, 0.4),
    "strong": (2000, 7, 0.025, 0.5, 0.7),
    "max": (5000, 0, 1.0, 0.5, 0.7),
}


@dataclasses.dataclass(frozen=True)
class Sld:
    """A preset of the paper, and values that replace those of the preset; None keeps them.

    A ``scale`` of at most 1 gives the plain pipeline.
    """

    preset: str = "medium"
    scale: float | None = None
    warmup_steps: int | None = None
    threshold: float | None = None
    momentum_scale: float | None = None
    momentum_beta: float | None = None

    def __post_init__(self):
        check_choice("preset", self.preset, tuple(PRESETS))
        arguments = self.arguments()
        for name in ("scale", "momentum_scale"):
            check_number(name, arguments[ARGUMENTS[name]], 0)
        check_whole("warmup_steps", arguments["sld_warmup_steps"], 0)
        check_number("threshold", arguments["sld_threshold"], float("-inf"))
        check_number("momentum_beta", arguments["sld_mom_beta"], 0, 1)

    def arguments(self) -> dict[str, float]:
        """Return the arguments of StableDiffusionPipelineSafe's call."""
        changed = [getattr(self, name) for name in ARGUMENTS]
        values = zip(changed, PRESETS[self.preset], strict=True)
        kept = [preset if value is None else value for value, preset in values]
        return dict(zip(ARGUMENTS.values(), kept, strict=True))


@contextlib.contextmanager
def sld(pipe: typing.Any, phrases: Sequence[str], settings: Sld) -> Generator[Sampler]:
    """Yield a sampler with safety guidance away from the phrases.

    Raise InputError if the pipeline is not of the family sd, or has no unconditional branch.
    """
    check_phrases(phrases)
    check_family(NAME, pipe, FAMILIES)
    check_unconditional_branch(NAME, pipe)
    check_weights_in_memory(NAME, pipe.text_encoder)
    with copies.sharing(pipe, _safe_pipeline_class()) as safe:
        safe.safety_concept = concept.joined(pipe, phrases)

        def sampler(prompts: list[str], seeds: list[int], **arguments: typing.Any) -> Samples:
            check_guidance(NAME, arguments["guidance"])
            _check_warmup(settings, arguments["steps"])
            arguments.pop("on_step", None)  # StableDiffusionPipelineSafe has no callback_on_step_end
            return sample(safe, prompts, seeds, extra=lambda _: settings.arguments(), **arguments)

        yield sampler


def _check_warmup(settings: Sld, steps: int) -> None:
    """Raise InputError if sampling ends before the warm-up does."""
    values = settings.arguments()
    if values["sld_warmup_steps"] >= steps and values["sld_guidance_scale"] > 1:
        raise InputError(
            f"warmup_steps is {values['sld_warmup_steps']}; it must be below the number of sampling steps, {steps}, "
            f"because {NAME} changes nothing before"
        )


@functools.cache
def _safe_pipeline_class() -> type:
    """Return StableDiffusionPipelineSafe, with the decoding and the safety checker of StableDiffusionPipeline.

    Raise InputError if the installed diffusers does not have it anymore.
    """
    base: typing.Any = getattr(diffusers, "StableDiffusionPipelineSafe", None)
    if base is None:
        raise InputError(
            f"diffusers {diffusers.__version__} has no StableDiffusionPipelineSafe; sld needs an older version"
        )

    class SafePipeline(base):
        def decode_latents(self, latents: torch.Tensor) -> np.ndarray:
            # The base class multiplies by the inverse of the factor, which rounds differently.
            image = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
            image = (image / 2 + 0.5).clamp(0, 1)
            return image.cpu().permute(0, 2, 3, 1).float().numpy()

        def run_safety_checker(self, image: np.ndarray, device: torch.device, dtype: torch.dtype, _enabled: bool):
            # The one of the base class fails on batches of more than two images.
            if self.safety_checker is None:
                return image, None, None
            pixels = self.feature_extractor(self.numpy_to_pil(image), return_tensors="pt").pixel_values
            image, flags = self.safety_checker(images=image, clip_input=pixels.to(device, dtype))
            return image, flags, None

    return SafePipeline
