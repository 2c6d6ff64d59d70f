"""Read the small JSON files of a pipeline, from its folder or the hub, without loading the pipeline."""

import dataclasses
import json
import pathlib
import re
import typing

import huggingface_hub

from revelio_jax import shipped
from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import BY_CLASS, BY_NAME, Family

TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
# Fields of a config.json that record how it was saved, and do not change the model.
SAVED_NOTES = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures", "_diffusers_version")


@dataclasses.dataclass(frozen=True)
class PipelineSource:
    """A pipeline that is not loaded: its folder or hub id, its family's name, and its model_index.json."""

    id: str
    revision: str | None
    family: str
    index: dict[str, typing.Any]

    @property
    def layout(self) -> Family:
        """Return the object of the pipeline's family."""
        return BY_NAME[self.family]

    def folder(self, component: str) -> str:
        """Return the folder of a component's files inside the model's folder."""
        return "" if self.layout.is_standalone else component


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
    path = _fetch(model_id, revision, "model_index.json")
    try:
        index = json.loads(path.read_text())
        name = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"config.model.id is {model_id!r}; its model_index.json is malformed: {error}") from error
    family_object = BY_CLASS.get(name)
    if family_object is None:
        raise InputError(f"config.model.id is {model_id!r}, a {name}; known pipelines: {', '.join(BY_CLASS)}")
    if family_object.name != family:
        raise InputError(
            f"config.model.family is {family!r}, but {model_id!r} is a {name}: "
            f"set config.model.family={family_object.name}"
        )
    for component in family_object.text_encoders.values():
        encoder = index.get(component, [None, None])[1]
        if encoder not in TEXT_ENCODERS:
            raise InputError(
                f"config.model.id is {model_id!r}; its {component} is {encoder}; known: {', '.join(TEXT_ENCODERS)}"
            )
    return PipelineSource(model_id, revision, family, index)


def component_config(source: PipelineSource, component: str) -> dict[str, typing.Any]:
    """Return a component's config without SAVED_NOTES."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    config = _read(source, str(pathlib.PurePosixPath(source.folder(component), name)))
    return {key: value for key, value in config.items() if key not in SAVED_NOTES}


def tokenizer_config(source: PipelineSource, component: str) -> dict[str, typing.Any]:
    """Return a tokenizer's config."""
    return _read(source, f"{component}/tokenizer_config.json")


def _read(source: PipelineSource, name: str) -> dict[str, typing.Any]:
    path = _fetch(source.id, source.revision, name)
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
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
