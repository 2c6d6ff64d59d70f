"""DiT: a transformer that generates images of a class; it has no text encoder."""

import typing
from collections.abc import Iterator

from revelio_jax.errors import InputError
from revelio_jax.pipelines.families.base import Arguments, Family, repeat_rows, whole_numbers
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.pipelines.hooks import HookPoint

if typing.TYPE_CHECKING:
    import torch


class DiT(Family):
    """Hook points: dit.block.N. Prompts are the names or the numbers of classes."""

    name = "dit"
    pipelines = ("DiTPipeline",)
    components = ("transformer",)
    component_classes: typing.ClassVar[dict[str, tuple[str, ...]]] = {"transformer": ("DiTTransformer2DModel",)}
    conditioning_argument = "class_labels"
    denoiser = "transformer"
    denoiser_prefix = "dit"
    takes_prompts = False
    reading_guidance = 4.0

    def denoiser_hook_points(self, denoiser: typing.Any) -> Iterator[HookPoint]:
        d = denoiser.config.num_attention_heads * denoiser.config.attention_head_dim
        for i, module in enumerate(denoiser.transformer_blocks):
            yield HookPoint(f"dit.block.{i}", "transformer", module, d)

    def branches(self, rows: int, guided: bool) -> dict[str, slice]:
        if not guided:
            return {CONDITIONAL: slice(0, rows)}
        return {CONDITIONAL: slice(0, rows // 2), UNCONDITIONAL: slice(rows // 2, rows)}  # the null class comes second

    def prompt_branches(self, pipe: typing.Any, conditioning: "torch.Tensor") -> list[str]:
        null = pipe.transformer.config.num_embeds_ada_norm
        return [UNCONDITIONAL if label == null else CONDITIONAL for label in conditioning.tolist()]

    def only_size(self, denoiser: typing.Any, vae_factor: int) -> int:
        return denoiser.config.sample_size * vae_factor

    def conditioning(self, pipe: typing.Any, prompt: str, guidance: float, size: tuple[int, int]) -> Arguments:
        null = pipe.transformer.config.num_embeds_ada_norm
        label = self.class_number(pipe, prompt) if prompt else null
        weight = next(pipe.transformer.parameters())
        return {"class_labels": weight.new_zeros(1, device=pipe._execution_device).long() + label}

    def empty_conditioning(self, pipe: typing.Any, like: "torch.Tensor", tokens: int | None) -> Arguments:
        return {"class_labels": like.new_zeros(1).long()}

    def denoiser_arguments(self, latents: "torch.Tensor", timestep: int, conditioning: Arguments) -> Arguments:
        return repeat_rows(conditioning, len(latents)) | {
            "hidden_states": latents,
            "timestep": whole_numbers(latents, timestep),
        }

    def image_grid(self, denoiser: typing.Any, latents: "torch.Tensor", call: Arguments) -> tuple[int, int]:
        patch = denoiser.config.patch_size
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    def call_arguments(self, pipe: typing.Any, prompts: list[str], guidance: float) -> Arguments:
        labels = [self.class_number(pipe, prompt) for prompt in prompts]
        return {"class_labels": labels, "guidance_scale": guidance}

    def guided_call_arguments(
        self, pipe: typing.Any, prompts: list[str], guidance: float, true_cfg: float, negative_prompt: str
    ) -> Arguments:
        return self.call_arguments(pipe, prompts, guidance)

    def reading_arguments(self, pipe: typing.Any, prompts: list[str]) -> Arguments:
        return {"class_labels": [self.class_number(pipe, prompt) for prompt in prompts], "output_type": "np"}

    def class_number(self, pipe: typing.Any, name: str) -> int:
        """Return the number of a class from its name or its number. Raise InputError if the class is unknown."""
        count = pipe.transformer.config.num_embeds_ada_norm
        if name in pipe.labels:
            return pipe.labels[name]
        if name.isdecimal() and int(name) < count:
            return int(name)
        names = f", or a name such as {', '.join(list(pipe.labels)[:3])}" if pipe.labels else ""
        raise InputError(f"unknown class {name!r}; this model takes a number below {count}{names}")
