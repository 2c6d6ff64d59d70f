"""Load diffusers pipelines and text encoders from a folder or the hub, and only the components that are needed.

:func:`load_pipeline` is the one way in which commands get a pipeline to sample from. Extraction calls :func:`load` or
:func:`load_text_encoder`, fingerprints the weights, and places them.
"""

import contextlib
import dataclasses
import types
import typing
import warnings
from collections.abc import Generator
from pickle import UnpicklingError

import diffusers
import diffusers.utils
import huggingface_hub
import numpy as np
import tensorstore as ts
import torch
import transformers
from safetensors import SafetensorError

from revelio_jax.config import ModelConfig
from revelio_jax.errors import InputError, first_sentence
from revelio_jax.pipelines import hook_points, placement, safety_checker, text_to_image, user_pipeline, weight_files
from revelio_jax.pipelines.devices import device, execution_device
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.pipelines.source import PipelineSource, component_config, find

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

QUANTIZATION = "quantization_config"  # field of the config of a quantized component

# transformers would otherwise ask on a terminal whether to run Python files of the folder.
NO_CODE: dict[str, typing.Any] = {"trust_remote_code": False}

# Exceptions that loaders raise if files are missing, broken, or belong to another model.
LOAD_ERRORS = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, RecursionError),
    *(SafetensorError, UnpicklingError),
)


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A text encoder in evaluation mode and its tokenizer.

    ``name`` is the first part of its hook points' names, for example clip. ``device`` is the device of its input.
    """

    component: str
    model: torch.nn.Module
    tokenizer: typing.Any
    name: str = ""
    device: torch.device | str = "cpu"

    @property
    def masked(self) -> bool:
        """Return whether the encoder gets an attention mask; pipelines pass one only if its config asks for it."""
        return self.component == "encoder" or getattr(self.model.config, "use_attention_mask", False)


def quiet() -> None:
    """Silence messages of the libraries, so that stderr holds only errors of this project."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()  # would report every retry
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


def skeleton(source: PipelineSource) -> types.SimpleNamespace:
    """Return the pipeline's text encoders on the meta device, to list their hook points without weights."""
    pipe = types.SimpleNamespace(**{name: None for name in source.index if not name.startswith("_")})
    for component in source.layout.text_encoders.values():
        config = architecture(source, component)
        with one_line_errors(source, component):
            cls = _encoder_class(source, component, config)
            with torch.device("meta"):
                if source.layout.is_standalone:
                    encoder = cls.from_config(transformers.AutoConfig.for_model(**config))
                else:
                    encoder = cls(cls.config_class(**config))
        setattr(pipe, component, encoder)
    return pipe


def architecture(source: PipelineSource, component: str) -> dict[str, typing.Any]:
    """Return the config of a component as if its weights were not quantized; the shapes are the same."""
    return {name: value for name, value in component_config(source, component).items() if name != QUANTIZATION}


def load_text_encoder(
    source: PipelineSource, component: str, dtype: str, device: torch.device | str = "cpu"
) -> TextEncoder:
    """Load one text encoder and its tokenizer, or return those of the given pipeline.

    The caller moves a loaded encoder to ``device``.
    """
    names = {component: name for name, component in source.layout.text_encoders.items()}
    if source.pipe is not None:
        model = getattr(source.pipe, component)
        tokenizer = getattr(source.pipe, component.replace("text_encoder", "tokenizer"))
        return _with_padding(
            source, TextEncoder(component, model, tokenizer, names[component], execution_device(model))
        )
    with one_line_errors(source, component):
        tokenizer_class, subfolder = _tokenizer_class(source, component)
        tokenizer = tokenizer_class.from_pretrained(source.id, subfolder=subfolder, **_revision(source), **NO_CODE)
        cls = _encoder_class(source, component, component_config(source, component))
        options = _options(source, component, dtype)
        model, info = cls.from_pretrained(source.id, subfolder=source.folder(component), **options, **NO_CODE)
    # A pooler runs after the last hook point, and many folders lack its weights.
    _check_weights(source, component, [key for key in info["missing_keys"] if not key.startswith("pooler.")])
    return _with_padding(source, TextEncoder(component, model.eval(), tokenizer, names[component], device))


def _with_padding(source: PipelineSource, encoder: TextEncoder) -> TextEncoder:
    """Return an encoder whose tokenizer can pad. Raise InputError if it has no padding token and no mask hides one."""
    tokenizer = encoder.tokenizer
    if tokenizer.pad_token is None:
        if not encoder.masked:
            raise InputError(
                f"{source.subject}; the tokenizer of its {encoder.component} has no padding token: set pad_token in "
                "its tokenizer_config.json"
            )
        # Decoders have no padding token. The mask hides the padding, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return encoder


def load(source: PipelineSource, model: ModelConfig, vae_dtype: str) -> typing.Any:
    """Load the text-to-image pipeline on the CPU, without its safety checker; or return the given pipeline.

    Raise InputError if it cannot be loaded, or if it is a sibling pipeline that needs more than a prompt.
    """
    text_to_image.check(source)
    if source.pipe is not None:
        return user_pipeline.text_to_image_pipeline(source)
    safety_checker.announce_dropped(source)
    if source.class_name != (name := text_to_image.pipeline_class(source).__name__):
        print(f"{source.id} is a {source.class_name}; it runs as a {name}")
    parts: dict[str, typing.Any] = {"scheduler": scheduler(source)}
    for component in source.layout.text_encoders.values():
        encoder = load_text_encoder(source, component, model.dtype)
        parts[component] = encoder.model
        parts[component.replace("text_encoder", "tokenizer")] = encoder.tokenizer
    for component, dtype in ((source.layout.denoiser or "", model.dtype), ("vae", vae_dtype)):
        with one_line_errors(source, component):
            cls = getattr(diffusers, source.index[component][1])
            part, info = cls.from_pretrained(source.id, subfolder=component, **_options(source, component, dtype))
        _check_weights(source, component, list(info["missing_keys"]))
        parts[component] = part.eval()
    with one_line_errors(source, "pipeline"):
        pipe = text_to_image.assemble(source, parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_pipeline(model: ModelConfig) -> typing.Any:
    """Load and place the pipeline of config.model, ready to sample. Raise InputError if it cannot be loaded.

    Every command that samples calls this function, so that all of them honor every field of config.model.
    """
    quiet()
    place = device(model.device)
    source = find(model.id, model.revision, model.family)
    if source.layout.denoiser is None:
        raise InputError(f"config.model.family is {model.family!r}; it must be a family with a denoiser")
    pipe = load(source, model, vae_dtype=model.dtype)
    placement.place(source, pipe, components(source), model, place)
    return pipe


def scheduler(source: PipelineSource) -> typing.Any:
    """Return a new scheduler like the pipeline's. Raise InputError if it cannot be loaded."""
    if source.pipe is not None:
        return type(source.pipe.scheduler).from_config(source.pipe.scheduler.config)
    with one_line_errors(source, "scheduler"):
        cls = getattr(diffusers, source.index["scheduler"][1])
        return cls.from_config(component_config(source, "scheduler"))


def components(source: PipelineSource) -> list[str]:
    """Return the names of the components with weights, in the order in which they run."""
    return [*source.layout.text_encoders.values(), source.layout.denoiser or "", "vae"]


def hook_point(pipe: typing.Any, name: str) -> HookPoint:
    """Return a hook point of config.extract.sites. Raise InputError if the pipeline does not have it."""
    try:
        return hook_points.resolve(pipe, name)
    except InputError as error:
        raise InputError(f"config.extract.sites: {error}") from error


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor of any device as an array. bfloat16 uses TensorStore's dtype, because numpy has none."""
    tensor = tensor.cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ts.bfloat16.numpy_dtype)
    return tensor.numpy()


@contextlib.contextmanager
def one_line_errors(source: PipelineSource, component: str) -> Generator[None]:
    """Turn errors that a library raises about a component into an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except LOAD_ERRORS as error:
        raise InputError(f"{source.subject}; its {component} cannot be loaded: {str(error)[:300]}") from error


@contextlib.contextmanager
def input_errors(message: str) -> Generator[None]:
    """Turn errors that a library raises while it loads or runs a user's model into InputError with ``message``."""
    try:
        yield
    except InputError:
        raise
    except LOAD_ERRORS as error:
        raise InputError(f"{message}: {first_sentence(error)}") from error


def converted(source: PipelineSource, encoder: TextEncoder, prompts: list[str]) -> list[str]:
    """Return prompts in which the given pipeline has replaced its textual inversions by their tokens."""
    convert = getattr(source.pipe, "maybe_convert_prompt", None)
    return prompts if convert is None else convert(prompts, encoder.tokenizer)


def _check_weights(source: PipelineSource, component: str, missing: list[str]) -> None:
    """Raise InputError if weights are missing; the libraries would use random numbers instead."""
    if missing:
        raise InputError(
            f"config.model.id is {source.id!r}; its {component} cannot be loaded: its weights lack "
            f"{len(missing)} tensors, such as {min(missing)}"
        )


def _options(source: PipelineSource, component: str, dtype: str) -> dict[str, typing.Any]:
    """Return the arguments of ``from_pretrained`` for the weights of a component.

    Print a line if its folder has the weights of one variant only.
    """
    options: dict[str, typing.Any] = {"dtype": DTYPES[dtype], "output_loading_info": True, **_revision(source)}
    if (variant := weight_files.variant(source, component)) is not None:
        print(f"{source.id}: the {component} has weights of the variant {variant} only; they are used as {dtype}")
        options["variant"] = variant
    return options


def _revision(source: PipelineSource) -> dict[str, str]:
    return {"revision": source.revision} if source.revision else {}


def _encoder_class(source: PipelineSource, component: str, config: dict[str, typing.Any]) -> type:
    if not source.layout.is_standalone:
        return getattr(transformers, source.index[component][1])
    has_decoder = transformers.AutoConfig.for_model(**config).is_encoder_decoder
    return transformers.AutoModelForTextEncoding if has_decoder else transformers.AutoModel


def _tokenizer_class(source: PipelineSource, component: str) -> tuple[type, str]:
    """Return the class and the folder of a text encoder's tokenizer."""
    if source.layout.is_standalone:
        return transformers.AutoTokenizer, ""
    name = component.replace("text_encoder", "tokenizer")
    # The fast class reads files of every version; transformers 5 has only this class.
    return getattr(transformers, source.index[name][1].removesuffix("Fast") + "Fast"), name
