"""Denoisers of every family: the pipeline, what a forward pass takes, and the shapes that come out.

Families give their denoiser latents, timestep and conditioning in their own ways; :func:`arguments`
is the one place that knows. :func:`skeleton` and :func:`shapes` need the components' configs alone.
"""

import contextlib
import dataclasses
import inspect
import typing
from collections.abc import Iterator

import diffusers
import numpy as np
import torch

from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points, loading
from revelio_jax.pipelines.hook_points import HookPoint
from revelio_jax.pipelines.loading import DTYPES, LOAD_ERRORS, PipelineSource

T5_TOKENS = 512  # FluxPipeline pads its prompt to this unless it is told of fewer

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Component:
    """A component by its name."""

    component: str
    model: torch.nn.Module


@dataclasses.dataclass(frozen=True)
class ActivationShape:
    """A site's activations of one sample at one timestep; ``same_input``: what goes in has this shape too."""

    positions: int
    d: int
    same_input: bool


def quiet() -> None:
    """As pipelines.quiet, for diffusers too."""
    loading.quiet()
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()


def skeleton(source: PipelineSource) -> typing.Any:
    """The pipeline's text encoders and denoiser on the meta device: no weights are read or made."""
    pipe = loading.skeleton(source)
    if source.family not in hook_points.DENOISERS:
        return pipe
    component = hook_points.DENOISERS[source.family]
    with _explained(source, component):
        cls = getattr(diffusers, source.index[component][1])
        with torch.device("meta"):
            denoiser = cls.from_config(loading.component_config(source, component))
        setattr(pipe, component, denoiser.eval().to("meta"))  # tables that numpy made are still elsewhere
    return pipe


def wanted_shapes(
    source: PipelineSource, extract: ExtractConfig
) -> tuple[dict[str, ActivationShape], tuple[int, int, int]]:
    """Shapes of config.extract.sites and of the latents.

    Raises InputError where a site is unknown, or has no difference and one is asked for.
    """
    if source.family not in hook_points.DENOISERS:
        raise InputError(
            f"config.model.family is {source.family!r}, which has no denoiser; config.extract.mode="
            f"{extract.mode} needs one of {', '.join(hook_points.DENOISERS)}"
        )
    pipe = skeleton(source)
    latent = latent_shape(source, getattr(pipe, hook_points.DENOISERS[source.family]), extract)
    wanted = [loading.site(pipe, name) for name in extract.sites]
    found = shapes(source, pipe, wanted, latent)
    for name, shape in found.items():
        if extract.value == "difference" and not shape.same_input:
            raise InputError(
                f"config.extract.value is 'difference', but what goes into {name} has another shape than "
                "what comes out; allowed there: output"
            )
    return found, latent


@torch.inference_mode()
def shapes(
    source: PipelineSource, pipe: typing.Any, wanted: list[HookPoint], latent: tuple[int, int, int]
) -> dict[str, ActivationShape]:
    """Shapes of sites of a denoiser, found by a forward pass on the meta device."""
    denoiser = getattr(pipe, hook_points.DENOISERS[source.family])
    latents = torch.empty(1, *latent, device="meta")
    found: dict[str, ActivationShape] = {}
    with contextlib.ExitStack() as hooks:
        for site in wanted:

            def after(_module, args, kwargs, output, site: HookPoint = site) -> None:
                hidden = site.read(output)
                same = site.read_input(args, kwargs).shape == hidden.shape
                found[site.name] = ActivationShape(hidden.shape[1], hidden.shape[2], same)

            hooks.callback(site.module.register_forward_hook(after, with_kwargs=True).remove)
        denoiser(**arguments(source.family, latents, 0, _no_conditioning(source, pipe, denoiser)))
    return {site.name: found[site.name] for site in wanted}


def latent_shape(source: PipelineSource, denoiser: torch.nn.Module, extract: ExtractConfig) -> tuple[int, int, int]:
    """Latents [channels, height, width] of config.extract.height and width. Raises InputError."""
    vae = loading.component_config(source, "vae")
    factor = 2 ** (len(vae.get("block_out_channels", (0,))) - 1)
    for field in ("height", "width"):
        size = getattr(extract, field)
        multiple = factor * (2 if source.family == "flux" else 1)
        if size % multiple:
            raise InputError(f"config.extract.{field} is {size}; this model needs a multiple of {multiple}")
        if source.family == "dit" and size != (only := denoiser.config.sample_size * factor):
            raise InputError(f"config.extract.{field} is {size}; this model is for {only}")
    return vae.get("latent_channels", 4), extract.height // factor, extract.width // factor


def arguments(family: str, latents: torch.Tensor, timestep: int, conditioning: Tensors) -> Tensors:
    """What a denoiser is called with, for noised latents [sample, channel, height, width].

    ``conditioning`` has one row, which every sample gets: :func:`encoded`.
    """
    count, device = len(latents), latents.device
    given = {name: row.expand(count, *row.shape[1:]) for name, row in conditioning.items()}
    if family == "flux":
        channels, height, width = latents.shape[1:]
        pipeline = diffusers.FluxPipeline
        return given | {
            "hidden_states": pipeline._pack_latents(latents, count, channels, height, width),
            "timestep": torch.full((count,), timestep / 1000, dtype=latents.dtype, device=device),
            "img_ids": pipeline._prepare_latent_image_ids(count, height // 2, width // 2, device, latents.dtype),
            "txt_ids": torch.zeros(given["encoder_hidden_states"].shape[1], 3, dtype=latents.dtype, device=device),
        }
    given["timestep"] = torch.full((count,), timestep, device=device)
    if family == "dit":
        return given | {"hidden_states": latents}
    if family == "sdxl":
        added = {name: given.pop(name) for name in ("text_embeds", "time_ids")}
        given["added_cond_kwargs"] = added
    return given | {"sample": latents}


@torch.inference_mode()
def encoded(pipe: typing.Any, extract: ExtractConfig) -> Tensors:
    """The conditioning of config.extract.prompt, one row. Raises InputError for a class that is not there."""
    family, device = hook_points.family(pipe), pipe._execution_device
    if family == "dit":
        null = pipe.transformer.config.num_embeds_ada_norm
        label = class_number(pipe, extract.prompt) if extract.prompt else null
        return {"class_labels": torch.tensor([label], device=device)}
    if family == "flux":
        length = prompt_length(pipe)
        text, pooled, _ = pipe.encode_prompt(extract.prompt, None, device, max_sequence_length=length)
        guidance = extract.guidance if pipe.transformer.config.guidance_embeds else None
        return _flux_conditioning(text, pooled, guidance)
    got = pipe.encode_prompt(extract.prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False)
    if family == "sd":
        return {"encoder_hidden_states": got[0]}
    size = (extract.height, extract.width)  # the picture as it is: nothing scaled or cut away
    time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=got[0].dtype, device=device)
    return {"encoder_hidden_states": got[0], "text_embeds": got[2], "time_ids": time_ids}


def prompt_length(pipe: typing.Any) -> int:
    """Tokens that FLUX's T5 is given, padding among them, which attention sees: as many as in mode text."""
    return min(T5_TOKENS, pipe.tokenizer_2.model_max_length)


def t5_tokens(source: PipelineSource) -> int:
    """:func:`prompt_length` of a pipeline that is not loaded."""
    length = loading.tokenizer_config(source, "tokenizer_2").get("model_max_length", T5_TOKENS)
    return min(T5_TOKENS, int(length))


def class_number(pipe: typing.Any, name: str) -> int:
    """The number of a class of a DiT, by its name or that number itself. Raises InputError."""
    count = pipe.transformer.config.num_embeds_ada_norm
    if name in pipe.labels:
        return pipe.labels[name]
    if name.isdecimal() and int(name) < count:
        return int(name)
    names = f", or a name such as {', '.join(list(pipe.labels)[:3])}" if pipe.labels else ""
    raise InputError(f"{name!r} is no class of this model; it takes a number below {count}{names}")


def load(source: PipelineSource, model: ModelConfig, vae_dtype: str) -> typing.Any:
    """The pipeline without its safety checker, on the CPU. Raises InputError where a part is missing."""
    parts: dict[str, typing.Any] = {}
    for component in hook_points.TEXT_ENCODERS[source.family].values():
        encoder = loading.load_text_encoder(source, component, model.dtype)
        parts[component] = encoder.model
        parts[component.replace("text_encoder", "tokenizer")] = encoder.tokenizer
    denoiser = hook_points.DENOISERS[source.family]
    where = {"revision": source.revision} if source.revision else {}
    for component, dtype in ((denoiser, model.dtype), ("vae", vae_dtype)):
        with _explained(source, component):
            cls = getattr(diffusers, source.index[component][1])
            part, info = cls.from_pretrained(
                source.id, subfolder=component, torch_dtype=DTYPES[dtype], output_loading_info=True, **where
            )
        if info["missing_keys"]:
            raise InputError(
                f"config.model.id {source.id!r}: {component} cannot be loaded: its weights lack "
                f"{len(info['missing_keys'])} tensors, such as {min(info['missing_keys'])}"
            )
        parts[component] = part.eval()
    parts["scheduler"] = scheduler(source)
    parts["requires_safety_checker"] = False
    pipeline = getattr(diffusers, source.index["_class_name"])
    given = {}
    for name, parameter in list(inspect.signature(pipeline.__init__).parameters.items())[1:]:
        setting = source.index.get(name)
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        given[name] = parts.get(name, default if setting is None or isinstance(setting, list) else setting)
    with _explained(source, "pipeline"):
        pipe = pipeline(**given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def components(family: str) -> list[str]:
    """What holds weights, in the order in which it runs."""
    return [*hook_points.TEXT_ENCODERS[family].values(), hook_points.DENOISERS[family], "vae"]


def described(
    source: PipelineSource, model: ModelConfig, device: torch.device, pipe: typing.Any
) -> dict[str, typing.Any]:
    """What a store says of its model: the fingerprint is of every part that holds weights."""
    parts = [Component(component, getattr(pipe, component)) for component in components(source.family)]
    facts = loading.described(model, source, device, parts)
    return facts | {"scheduler": loading.component_config(source, "scheduler")}


def scheduler(source: PipelineSource) -> typing.Any:
    """The pipeline's scheduler. Raises InputError."""
    with _explained(source, "scheduler"):
        cls = getattr(diffusers, source.index["scheduler"][1])
        return cls.from_config(loading.component_config(source, "scheduler"))


def schedule(source: PipelineSource, config: Config, latent: tuple[int, int, int]) -> dict[float, int]:
    """The timesteps that the pipeline denoises at, in order, by the value that the denoiser gets.

    Whole numbers, rounded; of several that are one number to the denoiser or here the first counts.
    """
    steps = config.extract.steps
    given = scheduler(source)
    trained = given.config.num_train_timesteps
    if source.family != "flux" and steps > trained:
        raise InputError(f"config.extract.steps is {steps}; this model has {trained} timesteps")
    with _explained(source, "scheduler"):
        if source.family != "flux":
            given.set_timesteps(steps)
        else:
            from diffusers.pipelines.flux.pipeline_flux import calculate_shift

            c = given.config
            shift = calculate_shift(
                latent[1] * latent[2] // 4,
                c.get("base_image_seq_len", 256),
                c.get("max_image_seq_len", 4096),
                c.get("base_shift", 0.5),
                c.get("max_shift", 1.15),
            )
            sigmas = None if c.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
            given.set_timesteps(**({"num_inference_steps": steps} if sigmas is None else {"sigmas": sigmas}), mu=shift)
    values: dict[float, int] = {}
    for timestep in given.timesteps:
        value = timestep.to(DTYPES[config.model.dtype]) / 1000 if source.family == "flux" else timestep
        if round(float(timestep)) not in values.values():
            values.setdefault(float(value), round(float(timestep)))
    return values


def _no_conditioning(source: PipelineSource, pipe: typing.Any, denoiser: torch.nn.Module) -> Tensors:
    """Conditioning on the meta device, of the shapes of :func:`encoded`."""
    config = denoiser.config
    with torch.device("meta"):
        if source.family == "dit":
            return {"class_labels": torch.zeros(1, dtype=torch.int64)}
        if source.family == "flux":
            text = torch.empty(1, t5_tokens(source), config.joint_attention_dim)
            guidance = 1.0 if config.guidance_embeds else None
            return _flux_conditioning(text, torch.empty(1, config.pooled_projection_dim), guidance)
        tokens = pipe.text_encoder.config.max_position_embeddings
        text = {"encoder_hidden_states": torch.empty(1, tokens, config.cross_attention_dim)}
        if source.family == "sd":
            return text
        pooled = pipe.text_encoder_2.config.projection_dim
        return text | {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}


def _flux_conditioning(text: torch.Tensor, pooled: torch.Tensor, guidance: float | None) -> Tensors:
    given = {"encoder_hidden_states": text, "pooled_projections": pooled}
    if guidance is not None:
        given["guidance"] = torch.full((1,), guidance, dtype=torch.float32, device=text.device)
    return given


@contextlib.contextmanager
def _explained(source: PipelineSource, component: str) -> Iterator[None]:
    """What a library raises on a component as one line."""
    try:
        yield
    except InputError:
        raise
    except LOAD_ERRORS as error:
        raise InputError(f"config.model.id {source.id!r}: {component}: {str(error)[:300]}") from error
