"""Masks of the objects in images: which share of each cell of a map is on the object."""

import pathlib
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageOps

from revelio_jax.errors import InputError
from revelio_jax.inputs.images import open_image
from revelio_jax.store import Store, layout

FIELD = "config.interpret.masks"

MaskReader = Callable[[int], np.ndarray | None]
"""A function that returns the mask of a sample number as float64 [height, width] in 0 .. 1, None without a mask."""


def open_masks(folder: str, store: Store, shape: tuple[int, int]) -> MaskReader:
    """Return a reader of the masks in ``folder``; ``shape`` is the height and width of the maps.

    A mask is an image whose white parts are the object. It has the name of the image of its sample, with the suffix
    .png: of the saved image, for example 00000012.png, or the path of the image in config.extract.images. It is scaled
    and cropped like that image. Raise InputError if the folder is missing or has no mask of a sample.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise InputError(f"{FIELD} is {folder!r}; it must be a folder of images")
    extract = store.manifest.get("extract", {})
    if "image" in store.schema.names and not extract.get("save_images"):
        names = store.table(["image"])["image"].to_pylist()
        paths = [root / pathlib.PurePosixPath(str(name)).with_suffix(".png") for name in names]
    else:
        names = [layout.image_key(number).rpartition("/")[2] for number in range(store.manifest["samples"])]
        paths = [root / name for name in names]
    if not any(path.is_file() for path in paths):
        raise InputError(f"{FIELD} is {folder!r}; it has no mask of a sample, for example {paths[0].relative_to(root)}")
    size = extract["width"], extract["height"]

    def read(number: int) -> np.ndarray | None:
        if not paths[number].is_file():
            return None
        try:
            with open_image(paths[number]) as file:
                mask = PIL.ImageOps.fit(file.convert("L"), size, PIL.Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{FIELD}: {paths[number]} cannot be read: {error}") from error
        mask = mask.resize((shape[1], shape[0]), PIL.Image.Resampling.BOX)
        return np.asarray(mask, np.float64) / 255

    return read
