"""InceptionV3 as FID uses it: the 2,048 means of its last layer, with the weights of the original TensorFlow network.

The user gives these weights as a safetensors file with the names of pytorch-fid and torch-fidelity. Four blocks differ
from other InceptionV3: their averages leave out the padding, and the last block pools by the maximum. Images are scaled
to 299 x 299 pixels as TensorFlow 1 does: bilinearly, without smoothing, with pixel 0 at position 0. Sources: Szegedy et
al. (2015), arXiv 1512.00567; Heusel et al. (2017), arXiv 1706.08500.
"""

import pathlib
import typing
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from revelio_jax import files
from revelio_jax.benchmark.judgment import Record
from revelio_jax.sae_folder.untrusted import read_tensors

WIDTH, SIDE, BATCH = 2048, 299, 32
EPSILON = 1e-3  # of the batch norms


class Convolution(typing.NamedTuple):
    """A convolution with batch norm and ReLU. A stride of 2 means no padding, otherwise ``padded`` keeps the size."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


AVERAGE, MAXIMUM, REDUCTION = "average", "maximum", "reduction"  # pools of 3 x 3; the last one has stride 2
Step = Convolution | str
Block = tuple[tuple[Step, ...], ...]
"""Branches that read the same input, and whose outputs are concatenated."""

C = Convolution
SQUARE, WIDE, TALL, ROW, COLUMN = (3, 3), (1, 7), (7, 1), (1, 3), (3, 1)


def _block_a(pooled: int) -> Block:
    return (
        (C("branch1x1", 64),),
        (C("branch5x5_1", 48), C("branch5x5_2", 64, (5, 5))),
        (C("branch3x3dbl_1", 64), C("branch3x3dbl_2", 96, SQUARE), C("branch3x3dbl_3", 96, SQUARE)),
        (AVERAGE, C("branch_pool", pooled)),
    )


def _block_c(width: int) -> Block:
    return (
        (C("branch1x1", 192),),
        (C("branch7x7_1", width), C("branch7x7_2", width, WIDE), C("branch7x7_3", 192, TALL)),
        (
            C("branch7x7dbl_1", width),
            C("branch7x7dbl_2", width, TALL),
            C("branch7x7dbl_3", width, WIDE),
            C("branch7x7dbl_4", width, TALL),
            C("branch7x7dbl_5", 192, WIDE),
        ),
        (AVERAGE, C("branch_pool", 192)),
    )


def _block_e(pool: str) -> Block:
    narrow, double = C("branch3x3_1", 384), (C("branch3x3dbl_1", 448), C("branch3x3dbl_2", 384, SQUARE))
    return (
        (C("branch1x1", 320),),
        (narrow, C("branch3x3_2a", 384, ROW)),
        (narrow, C("branch3x3_2b", 384, COLUMN)),
        (*double, C("branch3x3dbl_3a", 384, ROW)),
        (*double, C("branch3x3dbl_3b", 384, COLUMN)),
        (pool, C("branch_pool", 192)),
    )


STEM: tuple[Step, ...] = (
    C("Conv2d_1a_3x3", 32, SQUARE, 2),
    C("Conv2d_2a_3x3", 32, SQUARE, padded=False),
    C("Conv2d_2b_3x3", 64, SQUARE),
    REDUCTION,
    C("Conv2d_3b_1x1", 80),
    C("Conv2d_4a_3x3", 192, SQUARE, padded=False),
    REDUCTION,
)
BLOCKS: dict[str, Block] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        (C("branch3x3", 384, SQUARE, 2),),
        (C("branch3x3dbl_1", 64), C("branch3x3dbl_2", 96, SQUARE), C("branch3x3dbl_3", 96, SQUARE, 2)),
        (REDUCTION,),
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        (C("branch3x3_1", 192), C("branch3x3_2", 320, SQUARE, 2)),
        (
            C("branch7x7x3_1", 192),
            C("branch7x7x3_2", 192, WIDE),
            C("branch7x7x3_3", 192, TALL),
            C("branch7x7x3_4", 192, SQUARE, 2),
        ),
        (REDUCTION,),
    ),
    "Mixed_7b": _block_e(AVERAGE),
    "Mixed_7c": _block_e(MAXIMUM),
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the network by its name."""
    found: dict[str, tuple[int, ...]] = {}

    def outputs(steps: Sequence[Step], prefix: str, channels: int) -> int:
        for step in steps:
            if isinstance(step, Convolution):
                name = prefix + step.name
                found[f"{name}.conv.weight"] = (step.outputs, channels, *step.kernel)
                for each in ("weight", "bias", "running_mean", "running_var"):
                    found[f"{name}.bn.{each}"] = (step.outputs,)
                channels = step.outputs
        return channels

    channels = outputs(STEM, "", 3)
    for name, block in BLOCKS.items():
        channels = sum(outputs(branch, f"{name}.", channels) for branch in block)
    return found


class InceptionV3:
    """The network with the weights in ``path``, in float32. Raise InputError if a tensor is missing or misshapen."""

    width = WIDTH

    def __init__(self, path: pathlib.Path, device: torch.device):
        tensors = read_tensors(path, shapes())
        self._device = device
        self._tensors = {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}
        self.record: Record = {"name": "InceptionV3", "weights": {path.name: files.sha256(path)}}

    @torch.inference_mode()
    def features(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return the features float32 [N, 2048] of uint8 RGB images [height, width, 3] of any sizes."""
        rows: list[torch.Tensor] = []
        for start in range(0, len(pixels), BATCH):
            images = [resized(torch.tensor(each).to(self._device)) for each in pixels[start : start + BATCH]]
            rows.append(self._pooled((torch.stack(images) - 128) / 128).cpu())
        return torch.cat(rows).numpy()

    def _pooled(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        x_NCHW = self._run(STEM, "", x_NCHW)
        for name, block in BLOCKS.items():
            x_NCHW = torch.cat([self._run(branch, f"{name}.", x_NCHW) for branch in block], 1)
        return x_NCHW.mean((2, 3))

    def _run(self, steps: Sequence[Step], prefix: str, x_NCHW: torch.Tensor) -> torch.Tensor:
        for step in steps:
            if isinstance(step, Convolution):
                x_NCHW = self._convolve(step, prefix + step.name, x_NCHW)
            elif step == AVERAGE:
                x_NCHW = functional.avg_pool2d(x_NCHW, 3, 1, 1, count_include_pad=False)
            else:
                x_NCHW = functional.max_pool2d(x_NCHW, 3, *((2, 0) if step == REDUCTION else (1, 1)))
        return x_NCHW

    def _convolve(self, step: Convolution, name: str, x_NCHW: torch.Tensor) -> torch.Tensor:
        height, width = step.kernel if step.padded and step.stride == 1 else (1, 1)
        weight, *norm = (
            self._tensors[f"{name}.{each}"]
            for each in ("conv.weight", "bn.running_mean", "bn.running_var", "bn.weight", "bn.bias")
        )
        x_NCHW = functional.conv2d(x_NCHW, weight, None, step.stride, (height // 2, width // 2))
        return functional.batch_norm(x_NCHW, *norm, training=False, eps=EPSILON).relu_()


def resized(pixels_HWC: torch.Tensor) -> torch.Tensor:
    """Return an image as float32 [3, 299, 299], scaled as TensorFlow 1 does: pixel i reads position i H / 299."""
    x_CHW = pixels_HWC.permute(2, 0, 1).float()
    for axis in (1, 2):
        size = x_CHW.shape[axis]
        position = torch.arange(SIDE, device=x_CHW.device) * (size / SIDE)
        low = position.long().clamp(max=size - 1)
        share = (position - low).view(-1, 1) if axis == 1 else position - low
        below, above = x_CHW.index_select(axis, low), x_CHW.index_select(axis, (low + 1).clamp(max=size - 1))
        x_CHW = below + (above - below) * share
    return x_CHW
