"""Stable Diffusion 1.x and 2.x: one CLIP text encoder and a U-Net."""

import itertools
import typing
from collections.abc import Iterator

from revelio_jax.pipelines.families.base import Family
from revelio_jax.pipelines.hooks import HookPoint


class StableDiffusion(Family):
    """Hook points: clip.layer.N, and U-Net blocks and attentions, whose positions are pixels in row order."""

    name = "sd"
    pipelines = ("StableDiffusionPipeline",)
    components = ("text_encoder", "unet")
    component_classes: typing.ClassVar[dict[str, tuple[str, ...]]] = {
        "unet": ("UNet2DConditionModel", "UNetMotionModel"),
        "text_encoder": ("CLIPTextModel",),
    }
    text_encoders: typing.ClassVar[dict[str, str]] = {"clip": "text_encoder"}
    denoiser = "unet"
    denoiser_prefix = "unet"

    def denoiser_hook_points(self, denoiser: typing.Any) -> Iterator[HookPoint]:
        """Yield unet.mid_block, unet.up_blocks.I, and unet.BLOCK.attentions.J."""
        widths = denoiser.config.block_out_channels
        down = [(f"down_blocks.{i}", block, widths[i]) for i, block in enumerate(denoiser.down_blocks)]
        middle = [("mid_block", denoiser.mid_block, widths[-1])]
        up = [(f"up_blocks.{i}", block, widths[-1 - i]) for i, block in enumerate(denoiser.up_blocks)]
        for path, block, d in itertools.chain(middle, up):
            yield HookPoint(f"unet.{path}", "unet", block, d, is_map=True)
        for path, block, d in itertools.chain(down, middle, up):
            for i, attention in enumerate(getattr(block, "attentions", ())):
                yield HookPoint(f"unet.{path}.attentions.{i}", "unet", attention, d, is_map=True)
