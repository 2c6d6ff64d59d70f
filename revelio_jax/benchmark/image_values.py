"""Values of the images of a benchmark, for example labels or features, saved so that each is computed once.

A file has a line for each batch of images of a variant: {"variant": key, name of the values: {key of an image: value}}.
Lines that are incomplete or do not match their checksum are ignored. The value of a flagged image is None.
"""

import base64
import json
import pathlib
import typing
from collections.abc import Callable, Sequence

import numpy as np
import tqdm

from revelio_jax import checksums, file_locks, files
from revelio_jax.benchmark.images import ImageFolder, Shot

BATCH = 256  # images

Compute = Callable[[list[Shot], np.ndarray], Sequence[typing.Any]]
"""A function from shots and their images, uint8 [N, height, width, 3], to one JSON value for each."""


class ImageValues:
    """Values of one kind in the file ``path``, by variant and image. ``name`` is their name in its lines."""

    def __init__(self, path: pathlib.Path, name: str):
        self._path, self._name = path, name
        self._known: dict[str, dict[str, typing.Any]] = {}
        self._read = 0  # bytes

    def of(
        self,
        images: ImageFolder,
        shots: Sequence[Shot],
        compute: Compute,
        key: Callable[[Shot], str] = lambda shot: shot.file_name,
    ) -> list[typing.Any]:
        """Return the value of each image, or None for a flagged image. ``compute`` those that are not saved yet.

        ``key`` names an image; it also holds everything that a value depends on besides the image. Wait while another
        process computes, so that workers do not judge the same images.
        """
        with file_locks.waiting(self._path):
            return self._of(images, shots, compute, key)

    def _of(
        self, images: ImageFolder, shots: Sequence[Shot], compute: Compute, key: Callable[[Shot], str]
    ) -> list[typing.Any]:
        self._read_new_lines()
        known = self._known.setdefault(images.path.name, {})
        groups: dict[tuple[int, int], list[Shot]] = {}
        for shot in {name: shot for shot in shots if (name := key(shot)) not in known}.values():
            groups.setdefault((shot.prompt.height, shot.prompt.width), []).append(shot)
        for group in groups.values():
            for start in tqdm.trange(0, len(group), BATCH, desc=self._name, unit="batch", leave=False):
                self._add(images, group[start : start + BATCH], compute, key)
        return [known[key(shot)] for shot in shots]

    def _read_new_lines(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        for line in text.splitlines():
            if content := checksums.line(line):
                self._known.setdefault(content["variant"], {}).update(content[self._name])

    def _add(self, images: ImageFolder, batch: list[Shot], compute: Compute, key: Callable[[Shot], str]) -> None:
        """Compute and save the values of a batch of images of one size."""
        read = [(shot, *images.read(shot)) for shot in batch]
        usable = [(shot, pixels) for shot, pixels, is_flagged in read if not is_flagged]
        computed = compute([shot for shot, _ in usable], np.stack([pixels for _, pixels in usable])) if usable else []
        values: dict[str, typing.Any] = {key(shot): None for shot in batch}
        values |= {key(shot): value for (shot, _), value in zip(usable, computed, strict=True)}
        self._known[images.path.name] |= values
        self._path.parent.mkdir(parents=True, exist_ok=True)
        files.append_line(self._path, json.dumps(checksums.sealed({"variant": images.path.name, self._name: values})))


def encoded(features_D: np.ndarray) -> str:
    """Return features as a text: float32 in base64."""
    return base64.b64encode(np.ascontiguousarray(features_D, "<f4").tobytes()).decode()


def decoded(text: str) -> np.ndarray:
    """Return the features float32 [D] in a text of :func:`encoded`."""
    return np.frombuffer(base64.b64decode(text), "<f4")
