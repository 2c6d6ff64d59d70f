"""TraSCE, trajectory steering for concept erasure (Jain et al., arXiv 2412.07658), from its equations.

With predictions u (empty prompt), p (prompt) and n (phrases) at the latents x, one step is, per image:

    L = -loss_scale exp(-|p - n|^2 / (2 sigma^2))      mode=paper (algorithm 1)
    L = -loss_scale exp(-|p - n| / sigma)              mode=released (generate_images_concept_erasure.py)
    x <- scheduler.step(u + guidance (p - n), x - step_size dL/dx)

The predictions are not recomputed after x is changed. The norm is over all values of the prediction. The released code
always samples with DDIM; here the pipeline's scheduler is used, as for every method.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Generator, Sequence

import diffusers
import torch

from revelio_jax.baselines import concept, copies
from revelio_jax.baselines.sampler import Sampler
from revelio_jax.baselines.settings import (
    MODES,
    PAPER,
    check_choice,
    check_family,
    check_guidance,
    check_number,
    check_phrases,
    check_unconditional_branch,
    check_weights_in_memory,
)
from revelio_jax.pipelines.sampling import Samples, sample

NAME = "trasce"
FAMILIES = ("sd",)
SIGMA = {"paper": 1.0, "released": 2.0}  # for nudity; 2 sigma^2 of the paper is the released sigma


@dataclasses.dataclass(frozen=True)
class Trasce:
    """Published defaults are those for nudity; objects and styles use a loss scale of 1 and a smaller sigma.

    ``sigma``: None is 1 in mode paper, and 2 in mode released. A ``loss_scale`` of 0 leaves only the negative prompting
    u + guidance (p - n).
    """

    mode: str = "paper"
    loss_scale: float = 1.5
    step_size: float = 1.0
    sigma: float | None = None

    def __post_init__(self):
        check_choice("mode", self.mode, MODES)
        check_number("loss_scale", self.loss_scale, 0)
        check_number("step_size", self.step_size, 0)
        if self.sigma is not None:
            check_number("sigma", self.sigma, 1e-6)

    @property
    def width(self) -> float:
        """Return sigma of this mode."""
        return SIGMA[self.mode] if self.sigma is None else self.sigma


def localized_loss(p: torch.Tensor, n: torch.Tensor, settings: Trasce) -> torch.Tensor:
    """Return the loss of each image, float32 or float64 [B], from predictions [B, C, H, W]."""
    difference = (p - n).flatten(1)
    if difference.dtype in (torch.float16, torch.bfloat16):
        difference = difference.float()
    if settings.mode == PAPER:
        exponent = difference.square().sum(1) / (2 * settings.width**2)
    else:
        exponent = torch.linalg.vector_norm(difference, dim=1) / settings.width
    return -settings.loss_scale * torch.exp(-exponent)


@contextlib.contextmanager
def trasce(pipe: typing.Any, phrases: Sequence[str], settings: Trasce) -> Generator[Sampler]:
    """Yield a sampler that steers the latents away from the phrases.

    Raise InputError if the pipeline is not of the family sd, or has no unconditional branch.
    """
    check_phrases(phrases)
    check_family(NAME, pipe, FAMILIES)
    check_unconditional_branch(NAME, pipe)
    check_weights_in_memory(NAME, pipe.unet)
    with copies.sharing(pipe, TrascePipeline) as copy, _without_gradients(pipe.unet):
        copy.negative, copy.trasce = concept.joined(pipe, phrases), settings

        def sampler(prompts: list[str], seeds: list[int], **arguments: typing.Any) -> Samples:
            check_guidance(NAME, arguments["guidance"])
            return sample(copy, prompts, seeds, **arguments)

        yield sampler


@contextlib.contextmanager
def _without_gradients(module: torch.nn.Module) -> Generator[None]:
    """Compute no gradients of a module's parameters in the block."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class TrascePipeline(diffusers.StableDiffusionPipeline):
    """A StableDiffusionPipeline whose steps are those of TraSCE. It samples with guidance only."""

    negative: str
    trasce: Trasce

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: list[str],
        *,
        guidance_scale: float,
        num_inference_steps: int,
        height: int,
        width: int,
        generator: list[torch.Generator],
        output_type: str,
        callback_on_step_end: typing.Any = None,
    ) -> typing.Any:
        """Return images, as StableDiffusionPipeline does for the same arguments."""
        # Tensors that inference mode creates cannot take part in a gradient.
        with torch.inference_mode(False), torch.no_grad():
            device, count = self._execution_device, len(prompt)
            encoded: tuple[typing.Any, typing.Any] = self.encode_prompt(prompt, device, 1, True, [""] * count)
            p, u = encoded
            n, _ = self.encode_prompt([self.negative] * count, device, 1, False)
            self.scheduler.set_timesteps(num_inference_steps, device=device)
            latents = self.prepare_latents(
                count, self.unet.config.in_channels, height, width, p.dtype, device, generator
            )
            extra = self.prepare_extra_step_kwargs(generator, 0.0)
            for i, timestep in enumerate(self.scheduler.timesteps):
                prediction, latents = self._predict(latents, timestep, torch.cat([u, p, n]), guidance_scale)
                latents = self.scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0]
                if callback_on_step_end is not None:
                    callback_on_step_end(self, i, timestep, {"latents": latents})
            decoded = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
            decoded, flags = self.run_safety_checker(decoded, device, p.dtype)
            images: typing.Any = self.image_processor.postprocess(
                decoded, output_type, [not flag for flag in flags or [False] * count]
            )
            self.maybe_free_model_hooks()
        return diffusers.pipelines.stable_diffusion.StableDiffusionPipelineOutput(images, flags)

    def _predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, texts: torch.Tensor, guidance: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the guided prediction, and the latents after the step down the gradient of the loss."""
        is_steered = self.trasce.loss_scale > 0 and self.trasce.step_size > 0
        with torch.set_grad_enabled(is_steered):
            x = latents.detach().requires_grad_(is_steered)
            rows = self.scheduler.scale_model_input(torch.cat([x] * 3), timestep)
            u, p, n = self.unet(rows, timestep, encoder_hidden_states=texts, return_dict=False)[0].chunk(3)
            if is_steered:
                (gradient,) = torch.autograd.grad(localized_loss(p, n, self.trasce).sum(), x)
                latents = latents - self.trasce.step_size * gradient
        return (u + guidance * (p - n)).detach(), latents.detach()
