"""The settings of the entries of config.benchmark.quality, and the checks of the files that they name."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Generator

import torch

from revelio_jax import shipped
from revelio_jax.benchmark import miniature_judge
from revelio_jax.config.fields import field
from revelio_jax.errors import InputError
from revelio_jax.pipelines import devices
from revelio_jax.sae_folder.untrusted import read_json

FIELD = "config.benchmark.quality"
DEVICE = "auto, cuda, cuda:1, mps or cpu"
SET = "name of the prompt set to use; None: all prompts with the role other"
REFERENCE = "folder of reference images; None: the plain pipeline's images"


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """CLIP score and the cosine to the plain image."""

    model: str | None = field(None, "folder of a CLIP model of transformers, with image processor and tokenizer")
    set: str | None = field(None, SET)
    device: str = field("auto", DEVICE)


@dataclasses.dataclass(frozen=True)
class FidSettings:
    """FID with the features of InceptionV3."""

    features: str | None = field(None, "safetensors file with the weights of pytorch-fid's InceptionV3")
    reference: str | None = field(None, REFERENCE)
    set: str | None = field(None, SET)
    device: str = field("auto", DEVICE)


@dataclasses.dataclass(frozen=True)
class FrechetSettings:
    """The Fréchet distance of another model's features."""

    model: str | None = field(None, "folder of an image model of transformers, or of a miniature with its judge")
    reference: str | None = field(None, REFERENCE)
    set: str | None = field(None, SET)
    device: str = field("auto", DEVICE)


@dataclasses.dataclass(frozen=True)
class LpipsSettings:
    """LPIPS with AlexNet."""

    backbone: str | None = field(None, "safetensors file with the convolutions of torchvision's AlexNet")
    weights: str | None = field(None, "safetensors file with the weights of LPIPS' channels")
    set: str | None = field(None, SET)
    device: str = field("auto", DEVICE)


def open_device(field: str, name: str) -> torch.device:
    """Return a device by its name. Raise InputError, which names ``field``, if it is not available."""
    try:
        return devices.device(name)
    except InputError as error:
        raise InputError(str(error).replace("config.model.device", f"{field}.device")) from error


def weight_file(field: str, name: str | None) -> pathlib.Path:
    """Return the path of a safetensors file. Raise InputError, which names ``field``, if there is none."""
    path = pathlib.Path(name or "")
    if not name or path.suffix != ".safetensors" or not path.is_file():
        raise InputError(f"{field} is {name!r}; it must be a .safetensors file")
    return path


@contextlib.contextmanager
def naming(field: str) -> Generator[None]:
    """Put the name of a setting before an InputError about a file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{field}: {error}") from error


def image_model(field: str, name: str | None) -> tuple[pathlib.Path, str]:
    """Return the folder of a model of images and its type. Raise InputError, which names ``field``, if it has none."""
    folder = pathlib.Path(shipped.locate(name)) if name else None
    if folder and (folder / miniature_judge.WEIGHTS).is_file():
        return folder, "miniature"
    if folder is None or not (folder / "config.json").is_file():
        raise InputError(
            f"{field} is {name!r}; it must be the folder of an image model of transformers, with config.json, or of a "
            f"miniature's judge, with {miniature_judge.WEIGHTS}"
        )
    return folder, str(read_json(folder / "config.json").get("model_type"))
