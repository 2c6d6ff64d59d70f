"""The pictures that activations were taken of: those that extraction made, or those that it was given."""

import io
import typing
from collections.abc import Callable

import numpy as np
import PIL.Image

from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs.images import read_images
from revelio_jax.store import Store

Pictures = Callable[[int], PIL.Image.Image | None]
"""Number of a sample -> its picture as the model saw it, RGB; None where it does not decode."""


def open_pictures(store: Store, extract: ExtractConfig) -> Pictures | None:
    """The pictures of a store, None where it has none: text, or pictures that were not kept.

    Raises InputError where the pictures that it was made of are not those of config.extract.images.
    """
    facts = store.manifest.get("extract", {})
    if facts.get("save_images"):
        return lambda number: _saved(store, number)
    if "images" not in store.manifest.get("input", {}):
        return None
    images = read_images(extract.images, extract.image_column, extract.label_column, extract.split)
    if images.fingerprint != store.manifest["input"]["images"]:
        raise InputError(
            f"config.extract.images is {extract.images!r}; store {store.location} was made of other pictures"
        )
    height, width = facts["height"], facts["width"]

    def read(number: int) -> PIL.Image.Image | None:
        pixels = images.load(number, height, width)
        if pixels is None:
            return None
        return PIL.Image.fromarray(np.round((pixels.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8))

    return read


def _saved(store: Store, number: int) -> PIL.Image.Image | None:
    got = store.kvstore.read(f"images/{number:08d}.png").result()
    if got.state != "value":
        return None
    return PIL.Image.open(io.BytesIO(typing.cast(bytes, got.value))).convert("RGB")
