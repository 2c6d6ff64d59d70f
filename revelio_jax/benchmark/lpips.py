"""LPIPS with AlexNet: the perceptual distance of two images, with weights that the user gives.

``backbone`` is a safetensors file with the convolutions of torchvision's AlexNet (features.0.weight and so on), and
``weights`` one with the published weights of the channels (lin0.model.1.weight and so on). Source: Zhang et al. (2018),
arXiv 1801.03924.
"""

import pathlib
import typing

import numpy as np
import torch
from torch.nn import functional

from revelio_jax import files
from revelio_jax.benchmark.judgment import Record
from revelio_jax.benchmark.quality import lpips_distance
from revelio_jax.errors import InputError
from revelio_jax.sae_folder.untrusted import read_tensors

BATCH = 16
SMALLEST = 31  # pixels of a side; the second pool would have nothing to read


class Layer(typing.NamedTuple):
    """A convolution with ReLU; its number in ``features`` of AlexNet, and whether a pool of 3 x 3 precedes it."""

    number: int
    outputs: int
    inputs: int
    kernel: int
    stride: int
    padding: int
    pooled: bool


LAYERS = (
    Layer(0, 64, 3, 11, 4, 2, False),
    Layer(3, 192, 64, 5, 1, 2, True),
    Layer(6, 384, 192, 3, 1, 1, True),
    Layer(8, 256, 384, 3, 1, 1, False),
    Layer(10, 256, 256, 3, 1, 1, False),
)
# Means and standard deviations of the colors of ImageNet, for images in -1 .. 1.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips:
    """AlexNet and the weights of its channels. Raise InputError if a tensor is missing, misshapen or negative."""

    def __init__(self, backbone: pathlib.Path, weights: pathlib.Path, device: torch.device):
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in LAYERS:
            shapes[f"features.{layer.number}.weight"] = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
            shapes[f"features.{layer.number}.bias"] = (layer.outputs,)
        tensors = read_tensors(backbone, shapes)
        self._tensors = {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}
        names = [f"lin{number}.model.1.weight" for number in range(len(LAYERS))]
        channels = {name: (1, layer.outputs, 1, 1) for name, layer in zip(names, LAYERS, strict=True)}
        read = read_tensors(weights, channels)
        if negative := next((name for name in names if (read[name] < 0).any()), None):
            raise InputError(f"{weights}: {negative} has negative values; the weights of LPIPS are at least 0")
        self._weights, self._device = [read[name].reshape(-1) for name in names], device
        self.record: Record = {
            "name": "LPIPS (AlexNet)",
            "weights": {path.name: files.sha256(path) for path in (backbone, weights)},
        }

    def distances(self, pixels: np.ndarray, plain: np.ndarray) -> np.ndarray:
        """Return the distance float64 [N] of each of the uint8 RGB images [N, height, width, 3] to its plain one."""
        found: list[np.ndarray] = []
        for start in range(0, len(pixels), BATCH):
            one, other = (self._layers(each[start : start + BATCH]) for each in (pixels, plain))
            found.append(lpips_distance(one, other, self._weights))
        return np.concatenate(found)

    @torch.inference_mode()
    def _layers(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return the activations [N, C, H, W] of each layer after ReLU."""
        shift, scale = (torch.tensor(each, device=self._device)[:, None, None] for each in (SHIFT, SCALE))
        x_NCHW = torch.tensor(pixels).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        x_NCHW, layers = (x_NCHW - shift) / scale, list[np.ndarray]()
        for layer in LAYERS:
            if layer.pooled:
                x_NCHW = functional.max_pool2d(x_NCHW, 3, 2)
            weight, bias = (self._tensors[f"features.{layer.number}.{each}"] for each in ("weight", "bias"))
            x_NCHW = functional.conv2d(x_NCHW, weight, bias, layer.stride, layer.padding).relu_()
            layers.append(x_NCHW.cpu().numpy())
        return layers
