"""Load diffusers pipelines and text encoders from a folder or the hub, and only the components that are needed."""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import types
import typing
import warnings
from collections.abc import Generator

import diffusers
import diffusers.utils
import huggingface_hub
import numpy as np
import tensorstore as ts
import torch
import transformers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError

from revelio_jax.config import ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.pipelines.source import PipelineSource, component_config, find

if typing.TYPE_CHECKING:
    from revelio_jax.store import ModelRecord

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Exceptions that loaders raise if files are missing, broken, or belong to another model.
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)


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


@dataclasses.dataclass(frozen=True)
class Component:
    """A component of a pipeline and its name."""

    component: str
    model: torch.nn.Module


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
        config = component_config(source, component)
        with one_line_errors(source, component):
            cls = _encoder_class(source, component, config)
            with torch.device("meta"):
                if source.layout.is_standalone:
                    encoder = cls.from_config(transformers.AutoConfig.for_model(**config))
                else:
                    encoder = cls(cls.config_class(**config))
        setattr(pipe, component, encoder)
    return pipe


def load_text_encoder(
    source: PipelineSource, component: str, dtype: str, device: torch.device | str = "cpu"
) -> TextEncoder:
    """Load one text encoder and its tokenizer. The caller moves the encoder to ``device``."""
    with one_line_errors(source, component):
        tokenizer_class, subfolder = _tokenizer_class(source, component)
        tokenizer = tokenizer_class.from_pretrained(source.id, subfolder=subfolder, **_revision(source))
        cls = _encoder_class(source, component, component_config(source, component))
        model, info = cls.from_pretrained(
            source.id,
            subfolder=source.folder(component),
            dtype=DTYPES[dtype],
            output_loading_info=True,
            **_revision(source),
        )
    # A pooler runs after the last hook point, and many folders lack its weights.
    _check_weights(source, component, [key for key in info["missing_keys"] if not key.startswith("pooler.")])
    names = {component: name for name, component in source.layout.text_encoders.items()}
    return TextEncoder(component, model.eval(), tokenizer, names[component], device)


def load(source: PipelineSource, model: ModelConfig, vae_dtype: str) -> typing.Any:
    """Load the pipeline on the CPU, without its safety checker. Raise InputError if it cannot be loaded."""
    parts: dict[str, typing.Any] = {"scheduler": scheduler(source), "requires_safety_checker": False}
    for component in source.layout.text_encoders.values():
        encoder = load_text_encoder(source, component, model.dtype)
        parts[component] = encoder.model
        parts[component.replace("text_encoder", "tokenizer")] = encoder.tokenizer
    for component, dtype in ((source.layout.denoiser or "", model.dtype), ("vae", vae_dtype)):
        with one_line_errors(source, component):
            cls = getattr(diffusers, source.index[component][1])
            part, info = cls.from_pretrained(
                source.id, subfolder=component, torch_dtype=DTYPES[dtype], output_loading_info=True, **_revision(source)
            )
        _check_weights(source, component, list(info["missing_keys"]))
        parts[component] = part.eval()
    pipeline = getattr(diffusers, source.index["_class_name"])
    arguments = {}
    for name, parameter in list(inspect.signature(pipeline.__init__).parameters.items())[1:]:
        setting = source.index.get(name)
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        arguments[name] = parts.get(name, default if setting is None or isinstance(setting, list) else setting)
    with one_line_errors(source, "pipeline"):
        pipe = pipeline(**arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_pipeline(model: ModelConfig) -> typing.Any:
    """Load the whole pipeline ``model.id``, ready to sample. Raise InputError if it cannot be loaded."""
    quiet()
    place = device(model.device)
    source = find(model.id, model.revision, model.family)
    try:
        pipe = DiffusionPipeline.from_pretrained(source.id, revision=source.revision, torch_dtype=DTYPES[model.dtype])
    except LOAD_ERRORS as error:
        raise InputError(f"config.model.id is {source.id!r}; it cannot be loaded: {str(error)[:300]}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def scheduler(source: PipelineSource) -> typing.Any:
    """Return the pipeline's scheduler. Raise InputError if it cannot be loaded."""
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


def model_record(
    model: ModelConfig, source: PipelineSource, device: torch.device, parts: typing.Iterable[typing.Any]
) -> "ModelRecord":
    """Return the record of a model in a store; ``parts`` are the components that the rows depend on."""
    record: ModelRecord = {
        "id": model.id,
        "revision": model.revision or "",
        "family": model.family,
        "dtype": model.dtype,
        "device": device.type,
        "fingerprint": fingerprint(source, parts),
    }
    if model.compile:
        record["compile"] = True  # compiled kernels round differently
    return record


def fingerprint(source: PipelineSource, parts: typing.Iterable[typing.Any]) -> str:
    """Return the sha256 of the components' parameters, as loaded, and of their configs."""
    digest = hashlib.sha256()
    for part in parts:
        config = component_config(source, part.component)
        digest.update(json.dumps([part.component, config], sort_keys=True).encode())
        for name, parameter in part.model.named_parameters():
            # transformers 5 dropped this prefix from names of the same weights.
            name = name.removeprefix("text_model.")
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def device(name: str, worker: int = 0) -> torch.device:
    """Return a torch device by name; auto picks cuda, then mps, then cpu. Raise InputError if it is not available.

    With auto, worker N uses GPU N modulo the number of GPUs.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        kind = next(kind for kind, is_available in available.items() if is_available)
        return torch.device(kind, worker % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"config.model.device is {name!r}; it must be auto, cuda, cuda:1, mps or cpu") from error
    if not available.get(chosen.type, True):
        raise InputError(f"config.model.device is {name!r}; {chosen.type} is not available on this machine")
    if chosen.type == "cuda" and (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"config.model.device is {name!r}; this machine has {count} GPUs, numbered from cuda:0")
    try:
        if chosen.type not in available:
            torch.zeros(1, device=chosen).item()  # refuses meta, which holds no values
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"config.model.device is {name!r}; it does not work on this machine: {error}") from error
    return chosen


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
        raise InputError(
            f"config.model.id is {source.id!r}; its {component} cannot be loaded: {str(error)[:300]}"
        ) from error


def _check_weights(source: PipelineSource, component: str, missing: list[str]) -> None:
    """Raise InputError if weights are missing; the libraries would use random numbers instead."""
    if missing:
        raise InputError(
            f"config.model.id is {source.id!r}; its {component} cannot be loaded: its weights lack "
            f"{len(missing)} tensors, such as {min(missing)}"
        )


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
