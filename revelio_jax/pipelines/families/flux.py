"""FLUX.1: a T5 encoder for the tokens of the prompt, a CLIP encoder for a pooled vector, and a transformer.

Each branch of guidance is a separate pass. FluxPipeline names it with ``cache_context``, other pipelines do not.
"""

import typing
from collections.abc import Iterator

import numpy as np

from revelio_jax.pipelines.families.base import LONGEST_PROMPT, Arguments, Family, PooledVector, repeat_rows
from revelio_jax.pipelines.hooks import HookPoint

if typing.TYPE_CHECKING:
    import torch


class Flux(Family):
    """Hook points: clip.layer.N, t5.block.N, flux.double.N.image, .text, flux.single.N.image, .text."""

    name = "flux"
    pipelines = ("FluxPipeline",)
    components = ("transformer", "text_encoder", "text_encoder_2")
    component_classes: typing.ClassVar[dict[str, tuple[str, ...]]] = {
        "transformer": ("FluxTransformer2DModel",),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("T5EncoderModel",),
    }
    text_encoders: typing.ClassVar[dict[str, str]] = {"clip": "text_encoder", "t5": "text_encoder_2"}
    denoiser = "transformer"
    denoiser_prefix = "flux"
    pooled = PooledVector("text_encoder", 1, 1, is_only_output=True)
    is_flow = True
    timestep_scale = 1000
    guidance_argument = "true_cfg_scale"
    reading_guidance = 3.0
    noised_fields = ("guidance",)
    position_text_encoder = "t5"

    def encoder_hook_points(self, prefix: str, component: str, encoder: typing.Any) -> Iterator[HookPoint]:
        if prefix != "t5":
            yield from super().encoder_hook_points(prefix, component, encoder)
            return
        for i, module in enumerate(encoder.encoder.block):
            yield HookPoint(f"t5.block.{i}", component, module, encoder.config.d_model)

    def denoiser_hook_points(self, denoiser: typing.Any) -> Iterator[HookPoint]:
        d = denoiser.config.num_attention_heads * denoiser.config.attention_head_dim
        blocks = {"double": denoiser.transformer_blocks, "single": denoiser.single_transformer_blocks}
        for kind, modules in blocks.items():
            for i, module in enumerate(modules):
                for index, stream in enumerate(("text", "image")):
                    name = f"flux.{kind}.{i}.{stream}"
                    yield HookPoint(name, "transformer", module, d, output_index=index, needs_tuple=True)

    def group_branches(self, pipe: typing.Any, groups: int) -> tuple[str, ...] | None:
        return None  # each branch is a pass of its own

    def prompt_tokens(self, pipe: typing.Any) -> int:
        # Attention also reads T5's padding, so its length must be the same as in training and extraction.
        return min(LONGEST_PROMPT, pipe.tokenizer_2.model_max_length)

    def size_multiple(self, vae_factor: int) -> int:
        return 2 * vae_factor

    def conditioning(self, pipe: typing.Any, prompt: str, guidance: float, size: tuple[int, int]) -> Arguments:
        length, device = self.prompt_tokens(pipe), pipe._execution_device
        text, pooled, _ = pipe.encode_prompt(prompt, None, device, max_sequence_length=length)
        return self._conditioning(pipe, text, pooled, guidance)

    def empty_conditioning(self, pipe: typing.Any, like: "torch.Tensor", tokens: int | None) -> Arguments:
        config = pipe.transformer.config
        text = like.new_empty(1, tokens or LONGEST_PROMPT, config.joint_attention_dim)
        return self._conditioning(pipe, text, like.new_empty(1, config.pooled_projection_dim), 1.0)

    def _conditioning(
        self, pipe: typing.Any, text: "torch.Tensor", pooled: "torch.Tensor", guidance: float
    ) -> Arguments:
        arguments = {"encoder_hidden_states": text, "pooled_projections": pooled}
        if pipe.transformer.config.guidance_embeds:
            arguments["guidance"] = text.new_zeros(1).float() + guidance  # float32, whatever the dtype of the text
        return arguments

    def denoiser_arguments(self, latents: "torch.Tensor", timestep: int, conditioning: Arguments) -> Arguments:
        count, channels, height, width = latents.shape
        # 2 x 2 latents are one position, as in FluxPipeline._pack_latents.
        packed = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        image_ids = latents.new_zeros(height // 2, width // 2, 3)
        image_ids[..., 1] += latents.new_tensor(range(height // 2))[:, None]
        image_ids[..., 2] += latents.new_tensor(range(width // 2))[None, :]
        arguments = repeat_rows(conditioning, count)
        return arguments | {
            "hidden_states": packed.reshape(count, -1, 4 * channels),
            "timestep": latents.new_full((count,), timestep / self.timestep_scale),
            "img_ids": image_ids.reshape(-1, 3),
            "txt_ids": latents.new_zeros(arguments["encoder_hidden_states"].shape[1], 3),
        }

    def image_grid(self, denoiser: typing.Any, latents: "torch.Tensor", call: Arguments) -> tuple[int, int]:
        ids = call["img_ids"].reshape(-1, 3)
        _, height, width = (int(last) + 1 for last in ids[ids[:, 0] == 0].amax(0))
        return height, width

    def reference_positions(self, call: Arguments) -> "torch.Tensor | None":
        # Kontext appends the tokens of its reference images and numbers the images from 1.
        is_reference = call["img_ids"].reshape(-1, 3)[:, 0] > 0
        return is_reference if is_reference.any() else None

    def set_timesteps(self, scheduler: typing.Any, steps: int, latent: tuple[int, int, int]) -> None:
        config = scheduler.config
        # The shift grows linearly with the number of positions, as in calculate_shift of diffusers.
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        base, largest = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (largest - base) / (high - low)
        shift = (latent[1] * latent[2] // 4) * slope + (base - slope * low)
        if config.get("use_flow_sigmas"):
            scheduler.set_timesteps(num_inference_steps=steps, mu=shift)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)

    def call_arguments(self, pipe: typing.Any, prompts: list[str], guidance: float) -> Arguments:
        arguments = {"prompt": prompts, "max_sequence_length": self.prompt_tokens(pipe)}
        if pipe.transformer.config.guidance_embeds:
            return arguments | {"guidance_scale": guidance}
        return arguments | {"true_cfg_scale": guidance, "negative_prompt": [""] * len(prompts)}

    def guided_call_arguments(
        self, pipe: typing.Any, prompts: list[str], guidance: float, true_cfg: float, negative_prompt: str
    ) -> Arguments:
        arguments = {"prompt": prompts, "guidance_scale": guidance, "max_sequence_length": self.prompt_tokens(pipe)}
        if true_cfg > 1:
            arguments["true_cfg_scale"] = true_cfg
        if true_cfg > 1 or negative_prompt:
            arguments["negative_prompt"] = [negative_prompt] * len(prompts)
        return arguments

    def reading_arguments(self, pipe: typing.Any, prompts: list[str]) -> Arguments:
        return {
            "prompt": prompts,
            "negative_prompt": [""] * len(prompts),
            "max_sequence_length": self.prompt_tokens(pipe),
            "output_type": "latent",
        }

    def unpacked_latents(self, pipe: typing.Any, latents: "torch.Tensor", height: int, width: int) -> "torch.Tensor":
        return pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
