"""Diffusers pipelines, from a folder or the hub, without loading more of them than is needed."""

import dataclasses
import hashlib
import json
import pathlib
import re
import types
import typing
import warnings

import huggingface_hub
import numpy as np
import tensorstore as ts
import torch
import transformers

from revelio_jax.config import ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points

# The class of a pipeline, as its model_index.json has it, to its family.
FAMILIES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "FluxPipeline": "flux",
    "DiTPipeline": "dit",
}
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# What a loader may raise where files are missing, broken, or not the model's.
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)


@dataclasses.dataclass(frozen=True)
class PipelineSource:
    """A pipeline that is not loaded: where it is, and its model_index.json."""

    id: str
    revision: str
    family: str
    index: dict[str, typing.Any]

    def folder(self, component: str) -> str:
        """Where a component's files are, from the model's own folder."""
        return "" if self.family == "text" else component


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A text encoder in evaluation mode, and the tokenizer that goes with it.

    ``name`` is what its sites are called by, as clip; ``device`` where it takes its input.
    """

    component: str
    model: torch.nn.Module
    tokenizer: typing.Any
    name: str = ""
    device: torch.device | str = "cpu"

    @property
    def masked(self) -> bool:
        """Whether it is told what is padding. Pipelines tell theirs only where the config asks for it."""
        return self.component == "encoder" or getattr(self.model.config, "use_attention_mask", False)


def quiet() -> None:
    """Keep the libraries' notes off stderr: there, one line is one error."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()  # it would report every retry


def find(model_id: str, revision: str, family: str) -> PipelineSource:
    """Read what a pipeline consists of. Raises InputError where it is missing or of another family."""
    if not model_id:
        raise InputError("config.model.id is empty; it names a folder or a hub model")
    if family == "text":
        if pathlib.Path(model_id, "model_index.json").exists():
            raise InputError(
                f"config.model.family is 'text', but {model_id!r} is a pipeline: "
                f"set config.model.family to one of {', '.join(FAMILIES.values())}"
            )
        return PipelineSource(model_id, revision, family, {"encoder": ["transformers", "AutoModel"]})
    path = _fetch(model_id, revision, "model_index.json")
    try:
        index = json.loads(path.read_text())
        name = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"config.model.id {model_id!r}: model_index.json is no pipeline's: {error}") from error
    found = FAMILIES.get(name)
    if found is None:
        raise InputError(f"config.model.id {model_id!r} is a {name}; pipelines that are known: {', '.join(FAMILIES)}")
    if found != family:
        raise InputError(
            f"config.model.family is {family!r}, but {model_id!r} is a {name}: set config.model.family={found}"
        )
    for component in hook_points.TEXT_ENCODERS[family].values():
        encoder = index.get(component, [None, None])[1]
        if encoder not in TEXT_ENCODERS:
            raise InputError(
                f"config.model.id {model_id!r}: {component} is {encoder}; known: {', '.join(TEXT_ENCODERS)}"
            )
    return PipelineSource(model_id, revision, family, index)


def skeleton(source: PipelineSource) -> types.SimpleNamespace:
    """The pipeline's text encoders without weights, on the meta device: enough to name its sites."""
    pipe = types.SimpleNamespace(**{name: None for name in source.index if not name.startswith("_")})
    for component in hook_points.TEXT_ENCODERS[source.family].values():
        config = component_config(source, component)
        try:
            cls = _class(source, component, config)
            with torch.device("meta"):
                if source.family == "text":
                    model = cls.from_config(transformers.AutoConfig.for_model(**config))
                else:
                    model = cls(cls.config_class(**config))
            setattr(pipe, component, model)
        except LOAD_ERRORS as error:
            raise InputError(f"config.model.id {source.id!r}: {component}: {error}") from error
    return pipe


def load_text_encoder(
    source: PipelineSource, component: str, dtype: str, device: torch.device | str = "cpu"
) -> TextEncoder:
    """Load one text encoder, to be placed on ``device``, and its tokenizer; nothing else is read."""
    where = {"revision": source.revision} if source.revision else {}
    try:
        tokenizer_class, subfolder = _tokenizer(source, component)
        tokenizer = tokenizer_class.from_pretrained(source.id, subfolder=subfolder, **where)
        cls = _class(source, component, component_config(source, component))
        model, info = cls.from_pretrained(
            source.id,
            subfolder=source.folder(component),
            dtype=DTYPES[dtype],
            output_loading_info=True,
            **where,
        )
    except LOAD_ERRORS as error:
        raise InputError(f"config.model.id {source.id!r}: {component} cannot be loaded: {str(error)[:300]}") from error
    # transformers would go on with random numbers. Poolers come after every site, and many folders lack them.
    if missing := [key for key in info["missing_keys"] if not key.startswith("pooler.")]:
        raise InputError(
            f"config.model.id {source.id!r}: {component} cannot be loaded: its weights lack "
            f"{len(missing)} tensors, such as {min(missing)}"
        )
    names = {component: name for name, component in hook_points.TEXT_ENCODERS[source.family].items()}
    return TextEncoder(component, model.eval(), tokenizer, names[component], device)


def _class(source: PipelineSource, component: str, config: dict[str, typing.Any]) -> type:
    if source.family != "text":
        return getattr(transformers, source.index[component][1])
    # Of T5 and its kin the encoder alone.
    both = transformers.AutoConfig.for_model(**config).is_encoder_decoder
    return transformers.AutoModelForTextEncoding if both else transformers.AutoModel


def _tokenizer(source: PipelineSource, component: str) -> tuple[type, str]:
    """Class and folder of the tokenizer that goes with a text encoder."""
    if source.family == "text":
        return transformers.AutoTokenizer, ""
    name = component.replace("text_encoder", "tokenizer")
    # The fast class reads what every version wrote; since transformers 5 both are one.
    return getattr(transformers, source.index[name][1].removesuffix("Fast") + "Fast"), name


def described(
    model: ModelConfig, source: PipelineSource, device: torch.device, parts: typing.Iterable[typing.Any]
) -> dict[str, typing.Any]:
    """What a store says of its model; ``parts`` are those components that its bytes depend on."""
    return {
        "id": model.id,
        "revision": model.revision or "",
        "family": model.family,
        "dtype": model.dtype,
        "device": device.type,
        "fingerprint": fingerprint(source, parts),
        **({"compile": True} if model.compile else {}),  # other kernels round in another way
    }


def fingerprint(source: PipelineSource, encoders: typing.Iterable[TextEncoder]) -> str:
    """sha256 over the encoders' parameters, as loaded, and their configs: what activations depend on."""
    digest = hashlib.sha256()
    for encoder in encoders:
        config = component_config(source, encoder.component)
        digest.update(json.dumps([encoder.component, config], sort_keys=True).encode())
        for name, parameter in encoder.model.named_parameters():
            # transformers 5 dropped this prefix from names; the weights are the same.
            name = name.removeprefix("text_model.")
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def device(name: str, worker: int = 0) -> torch.device:
    """A torch device by name; "auto" is cuda, else mps, else cpu. Raises InputError.

    Workers on a machine with several GPUs take them in turn.
    """
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        kind = next(kind for kind, there in usable.items() if there)
        return torch.device(kind, worker % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"config.model.device is {name!r}; try auto, cuda, cuda:1, mps or cpu") from error
    if not usable.get(chosen.type, True):
        raise InputError(f"config.model.device is {name!r}, but this machine's torch has no {chosen.type}")
    if chosen.type == "cuda" and (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"config.model.device is {name!r}, but this machine has {count}, from cuda:0")
    try:
        if chosen.type not in usable:
            torch.zeros(1, device=chosen).item()  # meta, for one, holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"config.model.device is {name!r}, which does not work here: {error}") from error
    return chosen


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor of any device in memory; bfloat16 as TensorStore has it, since numpy has none of its own."""
    tensor = tensor.cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ts.bfloat16.numpy_dtype)
    return tensor.numpy()


def component_config(source: PipelineSource, component: str) -> dict[str, typing.Any]:
    """A component's config.json without what only says how it was saved."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    name = str(pathlib.PurePosixPath(source.folder(component), name))
    config = _read(source, name)
    saved = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures")
    saved += ("_diffusers_version",)
    return {key: value for key, value in config.items() if key not in saved}


def tokenizer_config(source: PipelineSource, component: str) -> dict[str, typing.Any]:
    """A tokenizer's own config."""
    return _read(source, f"{component}/tokenizer_config.json")


def _read(source: PipelineSource, name: str) -> dict[str, typing.Any]:
    path = _fetch(source.id, source.revision, name)
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"config.model.id {source.id!r}: {name}: {error}") from error


def site(pipe: typing.Any, name: str) -> hook_points.HookPoint:
    """A site of config.extract.sites. Raises InputError where the pipeline has none of that name."""
    try:
        return hook_points.resolve(pipe, name)
    except InputError as error:
        raise InputError(f"config.extract.sites: {error}") from error


def _fetch(model_id: str, revision: str, name: str) -> pathlib.Path:
    """A file of a folder or of a hub model. Raises InputError."""
    if pathlib.Path(model_id).is_dir():
        path = pathlib.Path(model_id, name)
        if not path.is_file():
            advice = "it is no diffusers pipeline; a text encoder alone is of config.model.family=text"
            raise InputError(
                f"config.model.id {model_id!r}: no {name} there" + (f"; {advice}" if name == "model_index.json" else "")
            )
        return path
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model_id):
        raise InputError(f"config.model.id {model_id!r}: no such folder, and no hub id (owner/name)")
    try:
        return pathlib.Path(huggingface_hub.hf_hub_download(model_id, name, revision=revision or None))
    except Exception as error:  # network, proxy, login, cache: each has its own class
        if isinstance(error, huggingface_hub.errors.GatedRepoError):
            advice = "accept its licence on the hub and log in with `hf auth login`"
        elif isinstance(error, huggingface_hub.errors.RepositoryNotFoundError):
            advice = "check the name, log in with `hf auth login` if it is private, or give a folder"
        else:
            advice = "check the network, or give the folder of a downloaded copy"
        raise InputError(
            f"config.model.id {model_id!r}: no such folder, and {name} does not come from the hub "
            f"({type(error).__name__}): {advice}"
        ) from error
