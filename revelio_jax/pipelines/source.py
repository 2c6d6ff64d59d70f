"""Describe a pipeline by the small JSON files of its folder or hub id, without loading it, or by its components.

Sibling pipelines of a family, such as img2img, inpaint, Kontext or LCM, are recognized by the classes of their
components. :mod:`revelio_jax.pipelines.text_to_image` decides which of them can run as a text-to-image pipeline.
"""

import dataclasses
import json
import pathlib
import re
import typing

import huggingface_hub

from revelio_jax import json_text, shipped
from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import BY_CLASS, BY_NAME, FAMILIES, Family

SINGLE_FILES = (".safetensors", ".ckpt", ".gguf")
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
# Fields of a config.json that record how it was saved, and do not change the model.
SAVED_NOTES = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures", "_diffusers_version")


@dataclasses.dataclass(frozen=True)
class PipelineSource:
    """A pipeline: its folder or hub id, its family's name, and its model_index.json.

    ``pipe`` is the pipeline if the caller has built it. Its components then describe it, and nothing is read.
    """

    id: str
    revision: str | None
    family: str
    index: dict[str, typing.Any]
    pipe: typing.Any = None

    @property
    def layout(self) -> Family:
        """Return the object of the pipeline's family."""
        return BY_NAME[self.family]

    def folder(self, component: str) -> str:
        """Return the folder of a component's files inside the model's folder."""
        return "" if self.layout.is_standalone else component

    @property
    def subject(self) -> str:
        """Return the start of a message about the pipeline."""
        return f"config.model.id is {self.id!r}" if self.pipe is None else "pipe is the given pipeline"

    @property
    def class_name(self) -> str:
        """Return the class of the pipeline."""
        return _class_name(self.index)


def find(model_id: str | None, revision: str | None, family: str) -> PipelineSource:
    """Read the index of a pipeline. Raise InputError if it is missing, malformed, unknown or of another family."""
    if not model_id:
        raise InputError("config.model.id is not set; it must be a folder or a hub id")
    model_id = shipped.locate(model_id)
    if BY_NAME[family].is_standalone:
        if pathlib.Path(model_id, "model_index.json").exists():
            raise InputError(
                f"config.model.family is {family!r}, but {model_id!r} is a pipeline: "
                f"set config.model.family to one of {', '.join(each.name for each in BY_CLASS.values())}"
            )
        return PipelineSource(model_id, revision, family, {"encoder": ["transformers", "AutoModel"]})
    index = _read_index(model_id, revision)
    name, family_object = _class_name(index), family_of_index(index)
    if family_object is None:
        raise InputError(
            f"config.model.id is {model_id!r}, a {name}; supported: {', '.join(BY_CLASS)}, and pipelines with the same "
            "text encoders"
        )
    if family_object.name != family:
        raise InputError(
            f"config.model.family is {family!r}, but {model_id!r} is a {name}: "
            f"set config.model.family={family_object.name}"
        )
    for component in family_object.text_encoders.values():
        entry: typing.Any = index.get(component)
        encoder = entry[1] if _is_pair(entry) else None
        if encoder not in TEXT_ENCODERS:
            raise InputError(
                f"config.model.id is {model_id!r}; its {component} is {encoder}; known: {', '.join(TEXT_ENCODERS)}"
            )
    return PipelineSource(model_id, revision, family, index)


def find_family(model_id: str, revision: str | None) -> str:
    """Return the name of a pipeline's family. Raise InputError if its index is missing, malformed or unknown."""
    model_id = shipped.locate(model_id)
    index = _read_index(model_id, revision)
    family = family_of_index(index)
    if family is None:
        raise InputError(f"{model_id!r} is a {_class_name(index)}; supported: {', '.join(BY_CLASS)}")
    return family.name


def family_of_index(index: dict[str, typing.Any]) -> Family | None:
    """Return the family of a pipeline by its class, otherwise by the classes of its components, or None."""
    if (family := BY_CLASS.get(_class_name(index))) is not None:
        return family
    classes = {name: entry[1] for name, entry in index.items() if _is_pair(entry)}
    encoders = {name for name in classes if name.startswith("text_encoder")}
    for family in FAMILIES:
        is_complete = encoders == set(family.text_encoders.values()) and family.denoiser in classes
        if is_complete and all(classes.get(name) in allowed for name, allowed in family.component_classes.items()):
            return family
    return None


def component_config(source: PipelineSource, component: str) -> dict[str, typing.Any]:
    """Return a component's config without SAVED_NOTES."""
    if source.pipe is not None:
        config = getattr(source.pipe, component).config
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        config = json.loads(json.dumps(config, default=str))  # as if it had been read
    else:
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        config = _read(source, str(pathlib.PurePosixPath(source.folder(component), name)))
    return {key: value for key, value in config.items() if key not in SAVED_NOTES}


def tokenizer_config(source: PipelineSource, component: str) -> dict[str, typing.Any]:
    """Return a tokenizer's config."""
    if source.pipe is not None:
        return {"model_max_length": getattr(source.pipe, component).model_max_length}
    return _read(source, f"{component}/tokenizer_config.json")


def _read_index(model_id: str, revision: str | None) -> dict[str, typing.Any]:
    """Return a model_index.json. Raise InputError if it is missing or malformed."""
    path = _fetch(model_id, revision, "model_index.json")
    try:
        index = json_text.parse_object(path.read_bytes())
        if not isinstance(index["_class_name"], str) and not _is_pair(index["_class_name"]):
            raise TypeError("its _class_name must be a text")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"config.model.id is {model_id!r}; its model_index.json is malformed: {error}") from error
    return index


def _class_name(index: dict[str, typing.Any]) -> str:
    name = index["_class_name"]  # community pipelines: [file, class]
    return name if isinstance(name, str) else str(name[-1])


def _is_pair(entry: object) -> bool:
    """Return whether a value of model_index.json names a class: [library, class]. Absent components have nulls."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(each, str) for each in entry)


def _read(source: PipelineSource, name: str) -> dict[str, typing.Any]:
    path = _fetch(source.id, source.revision, name)
    try:
        return json_text.parse_object(path.read_bytes())
    except ValueError as error:
        raise InputError(f"config.model.id is {source.id!r}; its {name} is malformed: {error}") from error


def _fetch(model_id: str, revision: str | None, name: str) -> pathlib.Path:
    """Return the path of a file in a folder, or download it from the hub. Raise InputError if it is missing."""
    if pathlib.Path(model_id).is_dir():
        path = pathlib.Path(model_id, name)
        if not path.is_file():
            advice = "every diffusers pipeline has this file; for a text encoder alone set config.model.family=text"
            raise InputError(
                f"config.model.id is {model_id!r}, a folder without {name}"
                + (f"; {advice}" if name == "model_index.json" else "")
            )
        return path
    if pathlib.Path(model_id).is_file() or model_id.endswith(SINGLE_FILES):
        raise InputError(_conversion(model_id))
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model_id):
        raise InputError(f"config.model.id is {model_id!r}; it must be an existing folder or a hub id (owner/name)")
    try:
        return pathlib.Path(huggingface_hub.hf_hub_download(model_id, name, revision=revision))
    except Exception as error:  # network, proxy, login, cache: each has its own class
        if isinstance(error, huggingface_hub.errors.GatedRepoError):
            advice = "accept its license on the hub and log in with `hf auth login`"
        elif isinstance(error, huggingface_hub.errors.RepositoryNotFoundError):
            advice = "check the name, log in with `hf auth login` if it is private, or set it to a folder"
        else:
            advice = "check the network, or set it to the folder of a downloaded copy"
        raise InputError(
            f"config.model.id is {model_id!r}; it is not a folder, and the hub does not provide {name} "
            f"({type(error).__name__}): {advice}"
        ) from error


def _conversion(file: str) -> str:
    """Return a message with the two lines that convert a single-file checkpoint to a folder."""
    if file.endswith(".gguf"):
        return (
            f"config.model.id is {file!r}, a single file of one component; load the pipeline with it as diffusers "
            "documents for GGUF, and pass it to extract.run.extract(config, pipe=pipe)"
        )
    folder = str(pathlib.Path(file).with_suffix(""))
    return (
        f"config.model.id is {file!r}, a single file; it must be a folder or a hub id. Convert it once, with the class "
        f"of the pipeline: pipe = diffusers.StableDiffusionPipeline.from_single_file({file!r}); "
        f"pipe.save_pretrained({folder!r})"
    )
