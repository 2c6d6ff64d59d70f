"""Read labeled images from a folder or a dataset.

An image that cannot be decoded keeps its row, and :meth:`Images.load` returns None for it.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import pathlib
import typing
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow

from revelio_jax.errors import InputError
from revelio_jax.inputs import hub
from revelio_jax.inputs.prompts import check_columns

Row = dict[str, typing.Any]

# Pillow opens more formats. Some of them run other programs (EPS runs Ghostscript) or have seldom-used decoders.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 1 << 26
"""Pixels of an image, 8192 x 8192. Decoding one needs up to 16 bytes per pixel, in each of a few threads."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Labeled images that are not decoded yet.

    ``samples`` has a row per image: ``id``, ``label`` and, for a folder, ``image``, its path in the folder.
    ``fingerprint`` is a hash of names and labels and, for a folder, of file sizes.
    """

    samples: list[Row]
    fingerprint: str
    read: Callable[[int], typing.Any]
    """Image number -> path or bytes of its file."""

    def load(self, number: int, height: int, width: int) -> np.ndarray | None:
        """Return an image as float32 [3, height, width] in [-1, 1], or None if it cannot be decoded."""
        return _decoded(self.read(number), height, width)

    def batches(self, batches: Iterable[Iterable[int]], height: int, width: int) -> Iterator[list[np.ndarray | None]]:
        """Yield the images of each batch of numbers, as :meth:`load` returns them. Threads decode the next batch."""
        with concurrent.futures.ThreadPoolExecutor() as threads:
            ahead: collections.deque[list[concurrent.futures.Future[np.ndarray | None]]] = collections.deque()
            for batch in batches:
                ahead.append([threads.submit(self.load, number, height, width) for number in batch])
                if len(ahead) > 1:
                    yield [image.result() for image in ahead.popleft()]
            for batch in ahead:
                yield [image.result() for image in batch]


def read_images(location: str | None, image_column: str, label_column: str | None, split: str) -> Images:
    """Find the images of config.extract.images without decoding them. Raise InputError if it has no usable images."""
    if not location:
        raise InputError("config.extract.images is not set; mode noised needs a folder of images or a dataset")
    path = pathlib.Path(location)
    is_saved_dataset = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if path.is_dir() and not is_saved_dataset:
        return _folder(path)
    is_file = path.suffix == ".parquet" and path.is_file()
    is_name = path.suffix != ".parquet" and hub.HUB_ID.fullmatch(location)
    if not (is_saved_dataset or is_file or is_name):
        raise InputError(
            f"config.extract.images is {location!r}; it must be a folder, a .parquet file or a hub name (owner/name)"
        )
    return _dataset(location, is_saved_dataset, image_column, label_column, split)


def _folder(folder: pathlib.Path) -> Images:
    formats = PIL.Image.registered_extensions().items()
    suffixes = {suffix for suffix, format in formats if format in FORMATS}
    paths = sorted(
        path
        for entry in folder.glob("*")
        for path in (entry.rglob("*") if entry.is_dir() else [entry])  # a label may be a link to a folder
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise InputError(f"config.extract.images {str(folder)!r}: the folder has no images")
    samples = []
    for number, path in enumerate(paths):
        within = path.relative_to(folder)
        label = within.parts[0] if len(within.parts) > 1 else None
        samples.append({"id": number, "image": within.as_posix(), "label": label})
    if all(sample["label"] is None for sample in samples):
        samples = [{key: sample[key] for key in ("id", "image")} for sample in samples]
    check_columns(f"config.extract.images {str(folder)!r}", samples)  # file names may not be UTF-8
    sizes = [(sample["image"], path.stat().st_size) for sample, path in zip(samples, paths, strict=True)]
    return Images(samples, hashlib.sha256(repr(sizes).encode()).hexdigest(), paths.__getitem__)


def _dataset(location: str, is_saved_dataset: bool, image_column: str, label_column: str | None, split: str) -> Images:
    where = f"config.extract.images {location!r}"
    datasets = hub.import_datasets(where)
    with hub.one_line_errors(where):
        if is_saved_dataset:
            data = datasets.load_from_disk(location)
        elif location.endswith(".parquet"):
            data = datasets.load_dataset("parquet", data_files=location, split="train")
        else:
            data = datasets.load_dataset(location, split=split)
    if isinstance(data, dict):  # a saved folder of several splits
        if split not in data:
            raise InputError(f"config.extract.split is {split!r}; {location} has {', '.join(map(str, data))}")
        data = data[split]
    columns = ", ".join(data.column_names)
    if image_column not in data.column_names:
        raise InputError(f"config.extract.image_column is {image_column!r}; {location} has {columns}")
    if label_column and label_column not in data.column_names:
        raise InputError(
            f"config.extract.label_column is {label_column!r}; {location} has {columns}; an empty value means no labels"
        )
    if not len(data):
        raise InputError(f"{where}: the dataset has no images")
    try:  # images are not decoded here, because one broken image would end the whole run
        images = data.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        raise InputError(
            f"config.extract.image_column is {image_column!r}, which must hold images, not "
            f"{data.features[image_column]}"
        ) from error
    labels: list[typing.Any] = [None] * len(data)
    if label_column:
        kind = data.features[label_column]
        labels = list(data[label_column])
        if isinstance(kind, datasets.ClassLabel):
            labels = [kind.int2str(label) if label is not None and label >= 0 else None for label in labels]
    samples = [{"id": number} for number in range(len(data))]
    if label_column:
        samples = [sample | {"label": label} for sample, label in zip(samples, labels, strict=True)]
        check_columns(where, samples)

    def read(number: int) -> typing.Any:
        image = images[number][image_column] or {}
        return image.get("bytes") or image.get("path")

    return Images(samples, hashlib.sha256(repr((location, split, labels)).encode()).hexdigest(), read)


def open_image(source: typing.Any) -> PIL.Image.Image:
    """Open an image, the path or the bytes of a file, without decoding its pixels.

    Raise ValueError if it has another format than FORMATS or more than MOST_PIXELS pixels, or OSError.
    """
    PIL.Image.init()
    formats = [name for name in FORMATS if name in PIL.Image.OPEN]  # some depend on how Pillow was built
    try:
        image = PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"it has {image.width:,} x {image.height:,} pixels; the product must be at most {MOST_PIXELS:,}"
        )
    return image


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Scale a 16-bit gray image to 8 bits; Pillow's own conversion would clip it."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float32)
    return PIL.Image.fromarray((values.clip(0, 65_535) / 257).round().astype(np.uint8))


def _decoded(source: typing.Any, height: int, width: int) -> np.ndarray | None:
    """Return an image scaled to cover height x width and cropped at its center; transparency is dropped.

    Return None if it cannot be decoded, has another format than FORMATS, or more than MOST_PIXELS pixels.
    """
    try:
        with open_image(source) as file:
            image = _eight_bits(PIL.ImageOps.exif_transpose(file)).convert("RGB")
        image = PIL.ImageOps.fit(image, (width, height), PIL.Image.Resampling.BICUBIC)
    except Exception:  # decoders raise many kinds of errors for broken files
        return None
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1
