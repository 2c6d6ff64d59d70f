"""Read the images of the samples of a store: saved by extraction, or from the folder that was extracted."""

from collections.abc import Callable

import numpy as np
import PIL.Image

from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs.images import open_image, read_images
from revelio_jax.store import Store, layout

ImageReader = Callable[[int], PIL.Image.Image | None]
"""A function that returns the RGB image of a sample number as the model saw it, or None if it cannot be decoded."""


def open_images(store: Store, extract: ExtractConfig) -> ImageReader | None:
    """Return a reader of the images of a store, or None for texts and for generated images that were not saved.

    Raise InputError if config.extract.images differs from the images that the store was extracted from.
    """
    settings = store.manifest.get("extract", {})
    if settings.get("save_images"):
        return lambda number: _saved_image(store, number)
    fingerprints = store.manifest.get("input", {})
    if "images" not in fingerprints:
        return None
    if not extract.images:
        raise InputError(f"config.extract.images is not set; store {store.location} was extracted from images")
    images = read_images(extract.images, extract.image_column, extract.label_column, extract.split)
    if images.fingerprint != fingerprints["images"]:
        raise InputError(
            f"config.extract.images is {extract.images!r}; store {store.location} was extracted from other images"
        )
    height, width = settings["height"], settings["width"]

    def read(number: int) -> PIL.Image.Image | None:
        pixels = images.load(number, height, width)
        if pixels is None:
            return None
        return PIL.Image.fromarray(np.round((pixels.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8))

    return read


def _saved_image(store: Store, number: int) -> PIL.Image.Image | None:
    result = store.kvstore.read(layout.image_key(number)).result()
    if result.state != "value":
        return None
    try:
        return open_image(result.value).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"store {store.location}: {layout.image_key(number)} cannot be read: {error}") from error
