"""LPIPS with AlexNet of random weights, against torch's own layers in float64."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from revelio_jax.benchmark.lpips import SMALLEST, Lpips
from revelio_jax.errors import InputError


@pytest.fixture(scope="module")
def alexnet() -> nn.Sequential:
    """The convolutions of torchvision's AlexNet, with its numbers."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


@pytest.fixture(scope="module")
def channels() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, width, 1, 1, generator=generator) for width in (64, 192, 384, 256, 256)]


@pytest.fixture
def paths(alexnet, channels, tmp_path):
    backbone, weights = tmp_path / "alexnet.safetensors", tmp_path / "lpips.safetensors"
    tensors = {f"features.{name}": tensor for name, tensor in alexnet.state_dict().items()}
    save_file(tensors | {"classifier.1.weight": torch.zeros(2, 2)}, backbone)  # other tensors are not read
    save_file({f"lin{i}.model.1.weight": tensor for i, tensor in enumerate(channels)}, weights)
    return backbone, weights


@torch.no_grad()
def reference(alexnet, channels, pixels) -> list[torch.Tensor]:
    """Return the activations after each ReLU in float64, of unit length over channels."""
    shift, scale = (torch.tensor(v, dtype=torch.float64) for v in ((-0.03, -0.088, -0.188), (0.458, 0.448, 0.45)))
    x = ((torch.tensor(pixels).double() / 127.5 - 1 - shift) / scale).permute(0, 3, 1, 2)
    layers = []
    for module in alexnet.double():
        x = module(x)
        if isinstance(module, nn.ReLU):
            layers.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
    return layers


@pytest.mark.parametrize(("height", "width"), [(SMALLEST, 40), (64, 64)])
def test_distances_are_those_of_the_definition(alexnet, channels, paths, height, width):
    pixels, plain = np.random.default_rng(0).integers(0, 256, (2, 3, height, width, 3), np.uint8)
    plain[2] = pixels[2]
    first, second = (reference(alexnet, channels, each) for each in (pixels, plain))
    wanted = sum(
        (weight.double() * (a - b) ** 2).sum(1).mean((1, 2))
        for weight, a, b in zip(channels, first, second, strict=True)
    )
    network = Lpips(*paths, torch.device("cpu"))
    distances = network.distances(pixels, plain)
    np.testing.assert_allclose(distances, wanted.numpy(), rtol=1e-4, atol=1e-12)
    assert distances[2] == 0 < distances[0]
    assert set(network.record["weights"]) == {path.name for path in paths}


def test_wrong_files_are_refused(paths, channels, tmp_path):
    backbone, weights = paths
    with pytest.raises(InputError, match=r"features.0.weight is missing"):
        Lpips(weights, weights, torch.device("cpu"))
    negative = tmp_path / "negative.safetensors"
    save_file({f"lin{i}.model.1.weight": -tensor for i, tensor in enumerate(channels)}, negative)
    with pytest.raises(InputError, match=r"lin0.model.1.weight has negative values"):
        Lpips(backbone, negative, torch.device("cpu"))
