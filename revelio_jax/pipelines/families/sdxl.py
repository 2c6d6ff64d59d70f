"""Stable Diffusion XL: two CLIP text encoders, a pooled vector from the second one, and a U-Net."""

import typing

from revelio_jax.pipelines.families.base import Arguments, PooledVector
from revelio_jax.pipelines.families.sd import StableDiffusion

if typing.TYPE_CHECKING:
    import torch


class StableDiffusionXL(StableDiffusion):
    """Hook points: clip_l.layer.N, clip_g.layer.N, and the U-Net's as in Stable Diffusion."""

    name = "sdxl"
    pipelines = ("StableDiffusionXLPipeline",)
    components = ("text_encoder", "text_encoder_2", "unet")
    component_classes = StableDiffusion.component_classes | {"text_encoder_2": ("CLIPTextModelWithProjection",)}
    text_encoders: typing.ClassVar[dict[str, str]] = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    pooled = PooledVector("text_encoder_2", 2, 3)

    def encoded_prompt(self, encoded: tuple, images: int) -> Arguments:
        return {"prompt_embeds": encoded[0][::images], "pooled_prompt_embeds": encoded[2][::images]}

    def split_encoded(self, encoded: tuple, size: tuple[int, int]) -> Arguments:
        time_ids = encoded[0].new_tensor([[*size, 0, 0, *size]])  # the original size, no crop, the target size
        return {"encoder_hidden_states": encoded[0], "text_embeds": encoded[2], "time_ids": time_ids}

    def empty_conditioning(self, pipe: typing.Any, like: "torch.Tensor", tokens: int | None) -> Arguments:
        pooled = {
            "text_embeds": like.new_empty(1, pipe.text_encoder_2.config.projection_dim),
            "time_ids": like.new_empty(1, 6),
        }
        return super().empty_conditioning(pipe, like, tokens) | pooled

    def denoiser_arguments(self, latents: "torch.Tensor", timestep: int, conditioning: Arguments) -> Arguments:
        arguments = super().denoiser_arguments(latents, timestep, conditioning)
        added = {name: arguments.pop(name) for name in ("text_embeds", "time_ids")}
        return arguments | {"added_cond_kwargs": added}
