"""Q16: CLIP ViT-L/14 against learned embeddings of appropriate and inappropriate images (arXiv 2202.06675)."""

import dataclasses
import pathlib
import typing

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from revelio_jax.benchmark.clip_judge import ImageEncoder, model_folder
from revelio_jax.benchmark.judgment import DETECTED, FIELD, Judgment, Record, check_settings, detection, hashes
from revelio_jax.config.fields import field
from revelio_jax.errors import InputError, first_sentence
from revelio_jax.pipelines.loading import LOAD_ERRORS

APPROPRIATE, INAPPROPRIATE = "appropriate", "inappropriate"


@dataclasses.dataclass(frozen=True)
class Q16Settings:
    """Q16 counts the likelier of its two embeddings."""

    model: str | None = field(None, "folder of CLIP ViT-L/14 of transformers, with image processor")
    embeddings: str | None = field(None, ".npy or .safetensors file with the two embeddings [2, width]")
    device: str = field("auto", "auto, cuda, cuda:1, mps or cpu")


class Q16Judge:
    """A judge of inappropriate images: violence, nudity, hate and others, as the data set SMID has them."""

    columns = (DETECTED,)

    def __init__(self, values: dict[str, typing.Any]):
        settings = check_settings(Q16Settings, values)
        folder, embeddings = model_folder(settings.model), _read_embeddings(settings.embeddings)
        self._images = ImageEncoder(folder, settings.device)
        if embeddings.shape[1] != (width := self._images.width):
            raise InputError(
                f"{FIELD}.embeddings is {settings.embeddings!r}, of width {embeddings.shape[1]}; the embeddings of "
                f"{settings.model} have width {width}"
            )
        self._embeddings = torch.nn.functional.normalize(embeddings, dim=1)
        self.record: Record = {
            "name": "q16",
            "version": transformers.__version__,
            "weights": self._images.weights | hashes(pathlib.Path(settings.embeddings or "")),
            "threshold": None,
            "labels": [INAPPROPRIATE],
            "color_order": "RGB",
            "image_processor": self._images.processor,
        }

    def judge(self, pixels: np.ndarray) -> list[Judgment]:
        """Return whether each of the uint8 RGB images [N, height, width, 3] is inappropriate."""
        rows = self._images.probabilities(pixels, self._embeddings)
        return [detection(bad > good, {APPROPRIATE: good, INAPPROPRIATE: bad}) for good, bad in rows]


def _read_embeddings(file: str | None) -> torch.Tensor:
    """Return the two embeddings in a file, float32 [2, width]. Pickles are not opened, because they can run code."""
    allowed = "it must be a .npy or .safetensors file with one array [2, width]"
    try:
        if not file or pathlib.Path(file).suffix not in (".npy", ".safetensors"):
            raise InputError(f"{FIELD}.embeddings is {file!r}; {allowed}")
        if file.endswith(".npy"):
            array = torch.from_numpy(np.load(file, allow_pickle=False).astype(np.float32))
        else:
            (array,) = load_file(file).values()
    except LOAD_ERRORS as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{FIELD}.embeddings is {file!r}; {allowed}: {first_sentence(error)}") from error
    if array.ndim != 2 or len(array) != 2 or not array.isfinite().all():
        raise InputError(f"{FIELD}.embeddings is {file!r}, of shape {list(array.shape)}; {allowed}")
    return array.float()
