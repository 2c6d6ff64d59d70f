"""The interface of a pipeline family: everything that differs between SD, SDXL, FLUX, DiT and a text encoder alone.

A family is one object. Code outside of this folder calls its methods and never compares its name. No module here
imports torch, because `revelio plan`, which uses JAX, reads it too; new tensors are derived from tensors of the caller.
"""

import dataclasses
import typing
from collections.abc import Iterator

from revelio_jax.errors import InputError
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.pipelines.hooks import HookPoint

if typing.TYPE_CHECKING:
    import torch

Arguments = dict[str, typing.Any]
ENCODER_NAMES = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")  # names in diffusers
LONGEST_PROMPT = 512  # tokens; pipelines with T5 pad to it by default, and no tokenizer here allows more


@dataclasses.dataclass(frozen=True)
class PooledVector:
    """The vector that a CLIP encoder pools a prompt to, which some denoisers take in addition to the tokens.

    ``component`` is the encoder; ``conditional`` and ``unconditional`` are the positions of the vector of the prompt
    and of the negative prompt in the result of ``encode_prompt``. ``is_only_output``: the pipeline uses no
    other output of that encoder.
    """

    component: str
    conditional: int
    unconditional: int
    is_only_output: bool = False


class Family:
    """One pipeline family. Methods default to the behavior of Stable Diffusion."""

    name: str
    pipelines: tuple[str, ...] = ()
    """Class names of its pipelines, as in ``model_index.json``."""
    components: tuple[str, ...] = ()
    """Attributes that a pipeline of this family has, if its class is not in ``pipelines``."""
    component_classes: typing.ClassVar[dict[str, tuple[str, ...]]] = {}
    """Class names that a component may have, if the class of the pipeline is not in ``pipelines``."""
    text_encoders: typing.ClassVar[dict[str, str]] = {}
    """First part of a hook point's name -> component of the pipeline."""
    denoiser: str | None = None
    """Component of the denoiser, or None without a denoiser."""
    denoiser_prefix: str | None = None
    """First part of the names of the denoiser's hook points."""
    pooled: PooledVector | None = None
    is_standalone = False
    """Whether the model is a text encoder without a pipeline."""
    conditioning_argument = "encoder_hidden_states"
    """Argument of the denoiser that holds the prompt of each row."""
    takes_prompts = True
    """Whether the pipeline's call takes prompts and an image size, and passes its latents to callbacks."""
    is_flow = False
    """Whether noise is added on a straight line (rectified flow)."""
    timestep_scale = 1
    """Factor from the denoiser's timestep to a timestep between 1000 (noise) and 0 (the image)."""
    guidance_argument = "guidance_scale"
    """Argument of the pipeline's call that scales the difference between the two branches of guidance."""
    reading_guidance = 5.0
    """Guidance scale for sampling the images from which the activations of a text are read."""
    noised_fields: tuple[str, ...] = ()
    """Fields of config.extract that the denoiser's conditioning depends on, in addition to the prompt."""
    position_text_encoder: str | None = None
    """First part of the name of the encoder whose tokens are the positions of the denoiser's text stream."""

    def matches(self, pipe: typing.Any) -> bool:
        """Return whether the components of a pipeline belong to this family.

        Names are not enough: other families also call their components text_encoder and transformer.
        """
        if not all(hasattr(pipe, name) for name in self.components):
            return False
        if any(hasattr(pipe, name) for name in ENCODER_NAMES if name not in self.text_encoders.values()):
            return False
        for name, classes in self.component_classes.items():
            component = getattr(pipe, name, None)
            component = getattr(component, "_orig_mod", component)  # torch.compile wraps a module
            if component is not None and not {cls.__name__ for cls in type(component).__mro__} & set(classes):
                return False
        return True

    def denoiser_of(self, pipe: typing.Any) -> typing.Any:
        """Return the denoiser of a pipeline. Raise InputError if the family has none."""
        if self.denoiser is None:
            raise InputError(f"a pipeline of the family {self.name} has no denoiser")
        return getattr(pipe, self.denoiser)

    # Hook points

    def hook_points(self, pipe: typing.Any) -> Iterator[HookPoint]:
        """Yield every hook point of the components that ``pipe`` holds, text encoders first."""
        for prefix, component in self.text_encoders.items():
            encoder = getattr(pipe, component)
            if encoder is not None:
                yield from self.encoder_hook_points(prefix, component, encoder)
        denoiser = getattr(pipe, self.denoiser, None) if self.denoiser else None
        if denoiser is not None:
            yield from self.denoiser_hook_points(denoiser)

    def encoder_hook_points(self, prefix: str, component: str, encoder: typing.Any) -> Iterator[HookPoint]:
        """Yield the layers of a CLIP text encoder: PREFIX.layer.N."""
        # text_model: CLIPTextModelWithProjection, and CLIPTextModel of transformers before 5.
        layers = getattr(encoder, "text_model", encoder).encoder.layers
        for i, module in enumerate(layers):
            yield HookPoint(f"{prefix}.layer.{i}", component, module, encoder.config.hidden_size)

    def denoiser_hook_points(self, denoiser: typing.Any) -> Iterator[HookPoint]:
        """Yield the hook points of the denoiser."""
        raise NotImplementedError

    # Branches of guidance

    def branches(self, rows: int, guided: bool) -> dict[str, slice]:
        """Return the rows of each branch of guidance in a batch of the family's text-to-image pipeline."""
        if not guided:
            return {CONDITIONAL: slice(0, rows)}
        return {UNCONDITIONAL: slice(0, rows // 2), CONDITIONAL: slice(rows // 2, rows)}

    def group_branches(self, pipe: typing.Any, groups: int) -> tuple[str, ...] | None:
        """Return the branch of each group of rows in a pass, in order, if the pipeline's class is known to fix it.

        Needed only if the prompt equals the negative prompt, so that rows cannot be told apart by what they receive.
        """
        if not type(pipe).__module__.startswith("diffusers."):
            return None
        if groups == 3 and "InstructPix2Pix" in type(pipe).__name__:
            return CONDITIONAL, UNCONDITIONAL, UNCONDITIONAL
        # Two groups, or three with perturbed-attention guidance, which runs the prompt twice.
        return (UNCONDITIONAL, *[CONDITIONAL] * (groups - 1)) if groups in (2, 3) else None

    def prompt_branches(self, pipe: typing.Any, conditioning: "torch.Tensor") -> list[str] | None:
        """Return the branch of each row from the conditioning itself; None if it must be compared with the prompts'."""
        return None

    # Text

    def prompt_tokens(self, pipe: typing.Any) -> int | None:
        """Return the number of tokens that the pipeline must pad a prompt to, or None if the caller does not set it."""
        return None

    def encoded_prompt(self, encoded: tuple, images: int) -> Arguments:
        """Return arguments of ``encode_prompt`` for a prompt that is already encoded, once per ``images`` images."""
        return {"prompt_embeds": encoded[0][::images]}

    # The denoiser

    def size_multiple(self, vae_factor: int) -> int:
        """Return the number of pixels that height and width must be a multiple of."""
        return vae_factor

    def only_size(self, denoiser: typing.Any, vae_factor: int) -> int | None:
        """Return the only height and width in pixels that the model supports, or None if it supports many."""
        return None

    def conditioning(self, pipe: typing.Any, prompt: str, guidance: float, size: tuple[int, int]) -> Arguments:
        """Encode a prompt into arguments of the denoiser, one row each. Raise InputError if the class is unknown."""
        encoded = pipe.encode_prompt(
            prompt, device=pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return self.split_encoded(encoded, size)

    def split_encoded(self, encoded: tuple, size: tuple[int, int]) -> Arguments:
        """Return the denoiser's arguments from ``encode_prompt``'s result; ``size`` is height and width in pixels."""
        return {"encoder_hidden_states": encoded[0]}

    def empty_conditioning(self, pipe: typing.Any, like: "torch.Tensor", tokens: int | None) -> Arguments:
        """Return uninitialized conditioning of the right shapes, on the device of ``like``.

        ``tokens`` is the length of the prompt, or None if the family does not fix it.
        """
        positions = pipe.text_encoder.config.max_position_embeddings
        return {"encoder_hidden_states": like.new_empty(1, positions, pipe.unet.config.cross_attention_dim)}

    def denoiser_arguments(self, latents: "torch.Tensor", timestep: int, conditioning: Arguments) -> Arguments:
        """Return the denoiser's arguments for noised latents [sample, channel, height, width].

        ``conditioning`` has one row, which all samples share.
        """
        return repeat_rows(conditioning, len(latents)) | {
            "sample": latents,
            "timestep": whole_numbers(latents, timestep),
        }

    def image_grid(self, denoiser: typing.Any, latents: "torch.Tensor", call: Arguments) -> tuple[int, int]:
        """Return height and width, in positions, of the output image in the denoiser's image stream."""
        return latents.shape[-2], latents.shape[-1]

    def reference_positions(self, call: Arguments) -> "torch.Tensor | None":
        """Return which positions of the image stream belong to reference images, bool [T]; None if none do."""
        return None

    def set_timesteps(self, scheduler: typing.Any, steps: int, latent: tuple[int, int, int]) -> None:
        """Set the scheduler's timesteps as the pipeline does. ``latent`` is [channels, height, width]."""
        trained = scheduler.config.num_train_timesteps
        if steps > trained:
            raise InputError(f"config.extract.steps is {steps}; it must be at most {trained}, this model's timesteps")
        scheduler.set_timesteps(steps)

    # Calls of the pipeline

    def call_arguments(self, pipe: typing.Any, prompts: list[str], guidance: float) -> Arguments:
        """Return arguments of the pipeline's call for ``prompts`` with this guidance scale."""
        return {"prompt": prompts, "guidance_scale": guidance}

    def guided_call_arguments(
        self, pipe: typing.Any, prompts: list[str], guidance: float, true_cfg: float, negative_prompt: str
    ) -> Arguments:
        """Return arguments of the pipeline's call for ``prompts``.

        ``guidance`` scales embedded guidance in FLUX, and classifier-free guidance in other families. Only FLUX uses
        ``true_cfg``, the scale of its classifier-free guidance.
        """
        negative = {"negative_prompt": [negative_prompt] * len(prompts)} if negative_prompt else {}
        return {"prompt": prompts, "guidance_scale": guidance} | negative

    def reading_arguments(self, pipe: typing.Any, prompts: list[str]) -> Arguments:
        """Return arguments of the pipeline's call that runs both branches to read activations of ``prompts``."""
        return {"prompt": prompts, "output_type": "latent"}

    def unpacked_latents(self, pipe: typing.Any, latents: "torch.Tensor", height: int, width: int) -> "torch.Tensor":
        """Return final latents as [sample, channel, height, width]; ``height`` and ``width`` are in pixels."""
        return latents


def whole_numbers(latents: "torch.Tensor", value: int) -> "torch.Tensor":
    """Return int64 [sample] filled with ``value``, on the device of the latents."""
    return latents.new_zeros(len(latents)).long() + value  # half precision would round the value


def repeat_rows(conditioning: Arguments, count: int) -> Arguments:
    """Repeat conditioning of one row for ``count`` samples."""
    return {name: row.expand(count, *row.shape[1:]) for name, row in conditioning.items()}
