"""Features of images by a network, saved so that each image is read by it once.

runs/<name>/benchmark/features/<key of the network>/<key of the variant>.jsonl has the features of a variant's images,
and reference-<fingerprint>.jsonl those of a folder of reference images.
"""

import json
import pathlib
import typing
from collections.abc import Sequence

import numpy as np
import tqdm
import transformers
from PIL import Image, ImageOps

from revelio_jax import checksums, files
from revelio_jax.benchmark.clip_judge import ImageEncoder
from revelio_jax.benchmark.embedders import open_embedder
from revelio_jax.benchmark.image_values import ImageValues, decoded, encoded
from revelio_jax.benchmark.images import KEY_LENGTH, ImageFolder, Shot, key_of
from revelio_jax.benchmark.judgment import Record, hashes
from revelio_jax.errors import InputError
from revelio_jax.inputs.images import Images, open_image, read_images

BATCH = 64  # reference images


class FeatureNetwork(typing.Protocol):
    """A network that turns an image into ``width`` features. ``record`` determines them, as that of a judge."""

    @property
    def record(self) -> Record: ...

    @property
    def width(self) -> int: ...

    def features(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return the features float32 [N, width] of uint8 RGB images [height, width, 3]."""
        ...


class ClipFeatures:
    """The unit embeddings of a CLIP model."""

    def __init__(self, encoder: ImageEncoder):
        self._encoder, self.width = encoder, encoder.width
        self.record: Record = {
            "name": "clip",
            "version": transformers.__version__,
            "weights": encoder.weights | encoder.tokenizer_files,
            "image_processor": encoder.processor,
        }

    def features(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return the features of :class:`FeatureNetwork`."""
        return self._encoder.embed_images(pixels).cpu().numpy()


class EmbedderFeatures:
    """The features of :func:`revelio_jax.benchmark.embedders.open_embedder`. ``kind`` is the type of the model."""

    def __init__(self, folder: pathlib.Path, kind: str, device: str, field: str):
        self._embed = open_embedder(folder, "image", device, field)
        self.width = self._embed([Image.new("RGB", (32, 32))]).shape[1]
        self.record: Record = {
            "name": kind,
            "version": transformers.__version__,
            "weights": hashes(*sorted(folder.glob("*.safetensors")), *folder.glob("preprocessor_config.json")),
        }

    def features(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return the features of :class:`FeatureNetwork`."""
        parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        return np.concatenate([self._embed([Image.fromarray(each) for each in part]) for part in parts])


class Reference:
    """A folder of reference images. Raise InputError, which names ``field``, if it is not a folder with images."""

    def __init__(self, folder: str, field: str):
        self._field = f"{field} is {folder!r}"
        if not pathlib.Path(folder).is_dir():
            raise InputError(f"{self._field}; it must be a folder of images")
        try:
            self._images: Images = read_images(folder, "", None, "")
        except InputError as error:
            raise InputError(str(error).replace("config.extract.images", field)) from error
        self.count = len(self._images.samples)
        self.fingerprint = self._images.fingerprint

    def pixels(self, number: int) -> np.ndarray:
        """Return an image as uint8 RGB [height, width, 3]. Raise InputError if it cannot be read."""
        path = self._images.read(number)
        try:
            with open_image(path) as image:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{self._field}; {path} is not a readable image: {error}") from error


class SavedFeatures:
    """The features of images by ``network``, in a folder of its own within ``folder``."""

    def __init__(self, folder: pathlib.Path, network: FeatureNetwork):
        self._folder, self._network = folder / key_of(network.record), network

    def of(self, images: ImageFolder, shots: Sequence[Shot]) -> list[np.ndarray | None]:
        """Return the features [width] of each image, or None for a flagged image."""
        values = ImageValues(self._folder / f"{images.path.name}.jsonl", "features")
        texts = values.of(
            images, shots, lambda _, pixels: [encoded(row) for row in self._network.features(list(pixels))]
        )
        return [None if text is None else decoded(text) for text in texts]

    def of_reference(self, reference: Reference) -> np.ndarray:
        """Return the features [N, width] of the reference images."""
        path = self._folder / f"reference-{reference.fingerprint[:KEY_LENGTH]}.jsonl"
        known: dict[str, str] = {}
        for line in path.read_bytes().splitlines() if path.exists() else []:
            known |= checksums.line(line)
        missing = [number for number in range(reference.count) if str(number) not in known]
        self._folder.mkdir(parents=True, exist_ok=True)
        for start in tqdm.trange(0, len(missing), BATCH, desc="reference images", unit="batch", leave=False):
            batch = missing[start : start + BATCH]
            rows = self._network.features([reference.pixels(number) for number in batch])
            new = {str(number): encoded(row) for number, row in zip(batch, rows, strict=True)}
            files.append_line(path, json.dumps(checksums.sealed(new)))
            known |= new
        return np.stack([decoded(known[str(number)]) for number in range(reference.count)])
