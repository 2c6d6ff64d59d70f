"""InceptionV3 of FID: its tensors, its scaling of images, and its features against those of torch-fidelity."""

import importlib
import importlib.util
import math
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from revelio_jax.benchmark import inception
from revelio_jax.errors import InputError


def test_the_network_has_the_published_number_of_parameters():
    """Keras counts 21,768,352 without the top and without the 17,216 scales of its batch norms."""
    shapes = inception.shapes()
    trained = sum(math.prod(shape) for name, shape in shapes.items() if "running" not in name)
    assert trained == 21_768_352 + 17_216
    assert sum(shape[0] for name, shape in shapes.items() if name.endswith("bn.weight")) == 17_216


@pytest.mark.parametrize(("height", "width"), [(32, 40), (400, 299), (512, 700)])
def test_images_are_scaled_as_in_tensorflow_1(height, width):
    """Pixel i reads position i size / 299, here in float64; TensorFlow computes positions in float32."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

    def weights(size):
        matrix = np.zeros((299, size))
        for i in range(299):
            low, share = divmod(i * size, 299)
            matrix[i, low] += 1 - share / 299
            matrix[i, min(low + 1, size - 1)] += share / 299
        return matrix

    rows = np.tensordot(weights(height), pixels.astype(float), 1)
    wanted = np.einsum("iwc,jw->cij", rows, weights(width), optimize=True)
    np.testing.assert_allclose(inception.resized(torch.from_numpy(pixels)).numpy(), wanted, atol=0.05)
    assert np.abs(wanted - wanted.round()).max() > 0.4


def test_wrong_files_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    first = {"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}
    save_file(first, path)
    with pytest.raises(InputError, match=r"tensor Conv2d_1a_3x3.bn.weight is missing"):
        inception.InceptionV3(path, torch.device("cpu"))
    save_file({name: tensor[:16].clone() for name, tensor in first.items()}, path)
    with pytest.raises(InputError, match=r"conv.weight is F32 \[16, 3, 3, 3\]; .* \[32, 3, 3, 3\]"):
        inception.InceptionV3(path, torch.device("cpu"))


@pytest.mark.slow
def test_features_are_those_of_torch_fidelity(tmp_path, monkeypatch):
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        # Its wheel has a package called tests, which would hide this project's: install it into a folder of its own.
        pytest.skip("torch-fidelity is not in PYTHONPATH: pip install --no-deps --target FOLDER torch-fidelity==0.4.0")
    package = types.ModuleType("torch_fidelity")  # its own __init__ imports torchvision
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: None)
    kind = type("Unloaded", (module.FeatureExtractorInceptionV3,), {"load_state_dict": lambda *_, **__: None})
    network, generator = kind("inception", ["2048"]), torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in inception.shapes().items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("conv.weight"):
            tensors[name] = noise * (2 / math.prod(shape[1:])) ** 0.5
        else:
            tensors[name] = 0.1 * noise + name.endswith(("bn.weight", "running_var"))
            tensors[name] = tensors[name].abs() if name.endswith("running_var") else tensors[name]
    own = {name for name in network.state_dict() if not name.startswith("fc.") and "num_batches" not in name}
    assert own == set(tensors)
    torch.nn.Module.load_state_dict(network, tensors, strict=False)
    save_file(tensors, tmp_path / "weights.safetensors")
    ours = inception.InceptionV3(tmp_path / "weights.safetensors", torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 72, 3), np.uint8)
    (wanted,) = network(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    features = ours.features(list(pixels))
    np.testing.assert_allclose(features, wanted.numpy(), atol=1e-3)
    assert features.std() > 0.1
    assert features.shape == (2, ours.width)
