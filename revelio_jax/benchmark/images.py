"""The images of a benchmark on disk, one file per image, so that a stopped command continues and workers share them.

runs/<name>/benchmark/images/<key of the variant>/<key of the prompt>-<seed>.png. A key is a hash of everything that
determines the images, so that files of other settings are never reused.
"""

import io
import pathlib
import typing

import numpy as np
from PIL import Image, PngImagePlugin

from revelio_jax import checksums, files
from revelio_jax.benchmark.tasks import TaskPrompt
from revelio_jax.errors import InputError
from revelio_jax.inputs import prompt_settings
from revelio_jax.inputs.images import open_image

KEY_LENGTH = 16  # hexadecimal digits
FLAGGED = "flagged"  # text of a PNG whose image the pipeline's safety checker replaced


class Shot(typing.NamedTuple):
    """One image of a task: a prompt and the seed that is added to its own."""

    prompt: TaskPrompt
    seed: int

    @property
    def total_seed(self) -> int:
        """Return the seed of the image's generator."""
        return prompt_settings.added(self.prompt.seed, self.seed)

    @property
    def file_name(self) -> str:
        """Return the name of the image's file."""
        prompt = self.prompt
        settings = [prompt.prompt, self.total_seed, prompt.guidance, prompt.height, prompt.width]
        return f"{key_of({'shot': settings})}.png"


def key_of(content: dict[str, typing.Any]) -> str:
    """Return a short hash of a JSON object."""
    return checksums.of_json(content)[:KEY_LENGTH]


class ImageFolder:
    """The images of one variant: ``folder`` / ``key``."""

    def __init__(self, folder: pathlib.Path, key: str):
        self.path = folder / key

    def missing(self, shots: typing.Iterable[Shot]) -> list[Shot]:
        """Return the shots without a file, each file once."""
        return list({shot.file_name: shot for shot in shots if not (self.path / shot.file_name).exists()}.values())

    def write(self, shot: Shot, pixels: np.ndarray, flagged: bool) -> None:
        """Write an image, uint8 [height, width, 3]. Raise InputError if it cannot be written."""
        text = PngImagePlugin.PngInfo()
        if flagged:
            text.add_text(FLAGGED, "yes")
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "png", pnginfo=text)
        self.path.mkdir(parents=True, exist_ok=True)
        files.write_bytes(self.path / shot.file_name, data.getvalue())

    def read(self, shot: Shot) -> tuple[np.ndarray, bool]:
        """Return the pixels of an image, uint8 [height, width, 3], and whether it was flagged.

        Raise InputError if the file is damaged.
        """
        path = self.path / shot.file_name
        try:
            with open_image(path) as image:
                return np.asarray(image.convert("RGB")), image.info.get(FLAGGED) == "yes"
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{path} is not a readable image; delete it to draw it again: {error}") from error
