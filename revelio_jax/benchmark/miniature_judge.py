"""The miniatures' judge: a small convolutional network that predicts the style and category of an image.

It ships with the miniature as ``judge.safetensors``; ``extract.miniature.judge`` trains it.
"""

import importlib.metadata
import pathlib

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from revelio_jax.benchmark.judgment import Judgment, Record, hashes

WEIGHTS = "judge.safetensors"
LABELS = {
    "style": ("noto", "flat", "glossy 3d"),
    "category": ("heart", "face", "animal", "food", "vehicle", "plant", "hand", "building"),
}
WIDTH = 44


class JudgeNet(nn.Module):
    """A network that returns logits of style [N, 3] and category [N, 8] for images [N, 3, 32, 32] in -1 .. 1."""

    def __init__(self):
        super().__init__()
        widths = (WIDTH, 2 * WIDTH, 4 * WIDTH)
        levels, channels = [], 3
        for i, width in enumerate(widths):
            levels.append(nn.Sequential(*_convolution(channels, width, 1 + (i > 0)), *_convolution(width, width, 1)))
            channels = width
        self.levels = nn.ModuleList(levels)
        features = 2 * sum(widths)  # means capture textures, maxima capture shapes
        self.style = nn.Linear(features, len(LABELS["style"]))
        self.category = nn.Linear(features, len(LABELS["category"]))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean and the maximum of every channel of every level, [N, features]."""
        pooled = []
        for level in self.levels:
            images = level(images)
            pooled += [images.mean((2, 3)), images.amax((2, 3))]
        return torch.cat(pooled, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(images)
        return self.style(features), self.category(features)

    def label(self, pixels: np.ndarray) -> list[dict[str, str]]:
        """Return style and category of uint8 images [N, 32, 32, 3], averaged over each image and its mirror image."""
        return [judgment.labels for judgment in self.judge(pixels)]

    @torch.no_grad()
    def judge(self, pixels: np.ndarray) -> list[Judgment]:
        """Return the labels of :meth:`label`, and the probability of every label as its score."""
        views = [[a + b for a, b in zip(self(part), self(part.flip(3)), strict=True)]
                 for part in to_tensor(pixels).split(256)]  # fmt: skip
        summed = [torch.cat(logits) for logits in zip(*views, strict=True)]
        indices = [logits.argmax(1).tolist() for logits in summed]
        scores = torch.cat([(logits / 2).softmax(1) for logits in summed], 1).tolist()
        names = [name for values in LABELS.values() for name in values]
        return [
            Judgment(
                {key: LABELS[key][i] for key, i in zip(LABELS, row, strict=True)}, dict(zip(names, each, strict=True))
            )
            for *row, each in zip(*indices, scores, strict=True)
        ]


class MiniatureJudge:
    """The judge in a miniature's folder. It predicts the label columns style and category."""

    columns = tuple(LABELS)

    def __init__(self, folder: pathlib.Path):
        self._net = load(folder)
        self.record: Record = {
            "name": "miniature",
            "version": importlib.metadata.version("revelio_jax"),
            "weights": hashes(folder / WEIGHTS),
            "threshold": None,
            "labels": [name for values in LABELS.values() for name in values],
            "color_order": "RGB",
        }

    def judge(self, pixels: np.ndarray) -> list[Judgment]:
        """Return style and category of uint8 RGB images [N, 32, 32, 3]."""
        return self._net.judge(pixels)


def load(folder: pathlib.Path) -> JudgeNet:
    """Load the judge from a miniature's folder, ready to label images."""
    judge = JudgeNet()
    judge.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    return judge.float().eval()


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Convert uint8 [N, H, W, 3] to float32 [N, 3, H, W] in -1 .. 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
