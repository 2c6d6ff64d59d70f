"""What a pipeline family is: everything that differs between SD, SDXL, FLUX, DiT and a text encoder alone.

A family is one object. Code outside of this folder asks it, and never compares its name. No module here imports
torch: tensors are made from tensors that are passed in, so that the trainer may ask for hook-point names.
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
LONGEST_PROMPT = 512  # tokens; pipelines with T5 pad to it by default, and no tokenizer here allows more


@dataclasses.dataclass(frozen=True)
class PooledVector:
    """The vector that a CLIP encoder pools a prompt to, which some denoisers take beside the tokens.

    ``component`` is the encoder; ``conditional`` and ``unconditional`` are the positions of the vector of the prompt
    and of the negative prompt in the result of ``encode_prompt``. ``is_all``: the pipeline reads nothing else from
    that encoder.
    """

    component: str
    conditional: int
    unconditional: int
    is_all: bool = False


class Family:
    """One pipeline family. The defaults are those of Stable Diffusion; B samples, T positions, D width."""

    name: str
    pipelines: tuple[str, ...] = ()
    """Class names of its pipelines, as in ``model_index.json``."""
    components: tuple[str, ...] = ()
    """Attributes that a pipeline of this family has, if its class is not in ``pipelines``."""
    text_encoders: typing.ClassVar[dict[str, str]] = {}
    """First part of a hook point's name -> component of the pipeline."""
    denoiser: str | None = None
    """Component of the denoiser, None if there is none."""
    prefix: str | None = None
    """First part of the names of the denoiser's hook points."""
    pooled: PooledVector | None = None
    is_standalone = False
    """Whether the model is a text encoder without a pipeline."""
    names_passes = False
    """Whether the branches of guidance are passes of their own, which the pipeline names, and not rows of one batch."""
    encodes_branches_apart = False
    """Whether ``encode_prompt`` encodes one prompt, so that the negative prompt needs a second call."""
    takes_prompts = True
    """Whether the pipeline is called with prompts and an image size, and gives its latents to callbacks."""
    is_flow = False
    """Whether noise is added on a straight line (rectified flow)."""
    timestep_scale = 1
    """Factor from the timestep that the denoiser gets to one between 1000, noise, and 0, the image."""
    guidance_argument = "guidance_scale"
    """Argument of the pipeline's call that scales the difference of the two branches of guidance."""
    reading_guidance = 5.0
    """Guidance at which a text is read off the denoiser."""
    noised_fields: tuple[str, ...] = ()
    """Fields of config.extract that a denoiser's conditioning depends on, in addition to the prompt."""
    position_text_encoder: str | None = None
    """First part of the name of the encoder whose tokens are the positions of the denoiser's text stream."""

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

    def encoder_hook_points(self, prefix: str, component: str, encoder: "torch.nn.Module") -> Iterator[HookPoint]:
        """Yield the layers of a CLIP text encoder: PREFIX.layer.N."""
        # text_model: CLIPTextModelWithProjection, and CLIPTextModel of transformers before 5.
        layers = getattr(encoder, "text_model", encoder).encoder.layers
        for i, module in enumerate(layers):
            yield HookPoint(f"{prefix}.layer.{i}", component, module, encoder.config.hidden_size)

    def denoiser_hook_points(self, denoiser: "torch.nn.Module") -> Iterator[HookPoint]:
        """Yield the hook points of the denoiser."""
        raise NotImplementedError

    # Branches of guidance

    def branches(self, rows: int, guided: bool) -> dict[str, slice]:
        """Return the rows of a denoiser's batch that each branch of guidance has."""
        if not guided:
            return {CONDITIONAL: slice(0, rows)}
        return {UNCONDITIONAL: slice(0, rows // 2), CONDITIONAL: slice(rows // 2, rows)}

    def is_guided(self, pipe: typing.Any, call: Arguments) -> bool:
        """Return whether a call of the pipeline, with arguments ``call``, runs both branches in one batch."""
        return pipe.do_classifier_free_guidance

    def pass_branches(self, pipe: typing.Any, call: Arguments, named: str | None, rows: int) -> dict[str, slice]:
        """Return the rows of each branch in one pass of the denoiser; ``named`` is the branch the pipeline names."""
        return self.branches(rows, self.is_guided(pipe, call))

    # Text

    def prompt_tokens(self, pipe: typing.Any) -> int | None:
        """Return the tokens that the denoiser's text has, padding included, if the caller must pass that number."""
        return None

    def encoded_prompt(self, encoded: tuple, images: int) -> Arguments:
        """Return arguments of ``encode_prompt`` that pass on an encoded prompt, repeated for ``images`` images."""
        return {"prompt_embeds": encoded[0][::images]}

    def has_zero_negative(self, pipe: typing.Any, call: Arguments) -> bool:
        """Return whether the pipeline uses zeros for the negative prompt, which no text encoder then sees."""
        return False

    def negative_prompt_call(self, call: Arguments) -> Arguments | None:
        """Return arguments of ``encode_prompt`` for the negative prompt if it needs a call of its own."""
        return None

    # The denoiser

    def size_multiple(self, vae_factor: int) -> int:
        """Return the number of pixels that height and width must be a multiple of."""
        return vae_factor

    def only_size(self, denoiser: "torch.nn.Module", vae_factor: int) -> int | None:
        """Return the height and width in pixels of a model that has only one size, otherwise None."""
        return None

    def conditioning(self, pipe: typing.Any, prompt: str, guidance: float, size: tuple[int, int]) -> Arguments:
        """Encode a prompt into arguments of the denoiser, one row each. Raise InputError for an unknown class."""
        return self.split_encoded(self.encode_alone(pipe, prompt), size)

    def encode_alone(self, pipe: typing.Any, prompt: str) -> tuple:
        """Return ``encode_prompt``'s result for one prompt without guidance."""
        return pipe.encode_prompt(
            prompt, device=pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )

    def split_encoded(self, encoded: tuple, size: tuple[int, int]) -> Arguments:
        """Return the denoiser's arguments from ``encode_prompt``'s result; ``size`` is height and width in pixels."""
        return {"encoder_hidden_states": encoded[0]}

    def empty_conditioning(self, pipe: typing.Any, like: "torch.Tensor", tokens: int | None) -> Arguments:
        """Return conditioning of the right shapes without values, on the device of ``like``.

        ``tokens`` is the length of the prompt if :meth:`prompt_tokens` has one.
        """
        tokens = pipe.text_encoder.config.max_position_embeddings
        return {"encoder_hidden_states": like.new_empty(1, tokens, pipe.unet.config.cross_attention_dim)}

    def denoiser_arguments(self, latents: "torch.Tensor", timestep: int, conditioning: Arguments) -> Arguments:
        """Return the denoiser's arguments for noised latents [sample, channel, height, width].

        ``conditioning`` has one row, which every sample gets.
        """
        return repeated(conditioning, len(latents)) | {
            "sample": latents,
            "timestep": whole_numbers(latents, timestep),
        }

    def image_grid(self, denoiser: "torch.nn.Module", latents: "torch.Tensor", call: Arguments) -> tuple[int, int]:
        """Return height and width, in positions, of the denoiser's image stream."""
        return latents.shape[-2], latents.shape[-1]

    def set_timesteps(self, scheduler: typing.Any, steps: int, latent: tuple[int, int, int]) -> None:
        """Set the scheduler as the pipeline does. ``latent`` is [channels, height, width]. Raise InputError."""
        trained = scheduler.config.num_train_timesteps
        if steps > trained:
            raise InputError(f"config.extract.steps is {steps}; it must be at most {trained}, this model's timesteps")
        scheduler.set_timesteps(steps)

    # Calls of the pipeline

    def call_arguments(self, pipe: typing.Any, prompts: list[str], guidance: float) -> Arguments:
        """Return arguments of the pipeline's call that give ``prompts`` this guidance."""
        return {"prompt": prompts, "guidance_scale": guidance}

    def guided_call_arguments(
        self, pipe: typing.Any, prompts: list[str], guidance: float, true_cfg: float, negative_prompt: str
    ) -> Arguments:
        """Return arguments of the pipeline's call; every kind of guidance is set explicitly."""
        negative = {"negative_prompt": [negative_prompt] * len(prompts)} if negative_prompt else {}
        return {"prompt": prompts, "guidance_scale": guidance} | negative

    def reading_arguments(self, pipe: typing.Any, prompts: list[str]) -> Arguments:
        """Return arguments of the pipeline's call that runs both branches to read activations of ``prompts``."""
        return {"prompt": prompts, "output_type": "latent"}

    def unpacked_latents(self, pipe: typing.Any, latents: "torch.Tensor", height: int, width: int) -> "torch.Tensor":
        """Return final latents as [sample, channel, height, width]; the arguments' unit is pixels."""
        return latents


def whole_numbers(latents: "torch.Tensor", value: int) -> "torch.Tensor":
    """Return ``value`` for every sample, int64 [sample], on the device of the latents."""
    return latents.new_zeros(len(latents)).long() + value  # half precision would round the value


def repeated(conditioning: Arguments, count: int) -> Arguments:
    """Return conditioning of one row for ``count`` samples."""
    return {name: row.expand(count, *row.shape[1:]) for name, row in conditioning.items()}
