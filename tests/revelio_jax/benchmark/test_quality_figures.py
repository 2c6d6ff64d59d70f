"""Figures of quality against scipy and the numbers of torchmetrics, on the same features."""

import numpy as np
import pytest
import scipy.linalg
import torch

from revelio_jax.benchmark import quality
from revelio_jax.errors import InputError


def gaussian(seed: int, rows: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


@pytest.mark.parametrize(("rows", "width"), [(40, 5), (33, 32), (500, 1)])
def test_frechet_distance_is_the_definition(rows, width):
    """scipy's matrix square root of A B, in float64."""
    first, second = gaussian(0, rows, width), gaussian(1, 2 * rows, width)
    a, b = (np.atleast_2d(np.cov(x.T)) for x in (first, second))
    root = scipy.linalg.sqrtm(a @ b)
    wanted = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root.real)
    np.testing.assert_allclose(quality.frechet_distance(first, second), wanted, rtol=1e-9)
    assert quality.frechet_distance(first, second) == pytest.approx(quality.frechet_distance(second, first), rel=1e-9)


@pytest.mark.slow
def test_frechet_distance_is_that_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed: see launch/test.sh")

    class Features(torch.nn.Module):
        num_features = 6

        def forward(self, images):
            return images.float().flatten(1)[:, :6]

    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 60, 3, 2, 1), np.uint8)
    second[:, 1] //= 2
    metric = fid.FrechetInceptionDistance(Features())
    metric.update(torch.from_numpy(first), real=True)
    metric.update(torch.from_numpy(second), real=False)
    ours = quality.frechet_distance(second.reshape(60, 6), first.reshape(60, 6))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-5)
    assert ours > 1000


def test_frechet_distance_of_equal_and_of_shifted_sets():
    rows = gaussian(0, 50, 4)
    assert quality.frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert quality.frechet_distance(rows, rows + np.array([3, 4, 0, 0])) == pytest.approx(25, rel=1e-9)


def test_fewer_images_than_features_are_refused():
    few, many = gaussian(0, 32, 32), gaussian(1, 100, 32)
    with pytest.raises(InputError, match="the images are 32 for 32 features; use at least 33 images"):
        quality.frechet_distance(few, many)
    with pytest.raises(InputError, match="the reference are 32 for 32 features"):
        quality.frechet_distance(many, few)


def test_cosines_and_clip_scores():
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, 7, 16)).astype(np.float32)
    wanted = [
        sum(float(a) * float(b) for a, b in zip(x, y, strict=True))
        / sum(float(a) ** 2 for a in x) ** 0.5
        / sum(float(b) ** 2 for b in y) ** 0.5
        for x, y in zip(images, texts, strict=True)
    ]
    np.testing.assert_allclose(quality.cosines(images, texts), wanted, rtol=1e-12)
    np.testing.assert_allclose(quality.clip_scores(images, texts), 100 * np.array(wanted), rtol=1e-12)
    np.testing.assert_allclose(quality.cosines(images, 3 * images), 1)
    with pytest.raises(InputError, match="the features of sample 2 are all zero"):
        quality.cosines(images * (np.arange(7) != 2)[:, None], texts)
    with pytest.raises(InputError, match="features are for 7 and 6 samples"):
        quality.cosines(images, texts[:6])
    with pytest.raises(InputError, match="features must be finite"):
        quality.cosines(images * np.nan, texts)
    with pytest.raises(InputError, match=r"shapes \(7, 16\) and \(7, 8\)"):
        quality.cosines(images, texts[:, :8])


def test_pixel_rmse():
    images = np.zeros((3, 2, 2, 3), np.uint8)
    plain = images.copy()
    plain[1] = 255
    plain[2, 0, 0, 0] = 51
    np.testing.assert_allclose(quality.pixel_rmse(images, plain), [0, 1, (0.2**2 / 12) ** 0.5], rtol=1e-12)
    np.testing.assert_array_equal(quality.pixel_rmse(images, plain), quality.pixel_rmse(plain, images))
    with pytest.raises(InputError, match=r"float64 .*must be uint8"):
        quality.pixel_rmse(images / 255, plain / 255)
    with pytest.raises(InputError, match="must be uint8"):
        quality.pixel_rmse(images, plain[:2])


def test_lpips_distance_is_the_definition():
    """Loops over images, positions and channels."""
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 4, 5), (2, 6, 2, 2)]
    first, second = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    weights = [rng.random(shape[1]) for shape in shapes]
    wanted = np.zeros(2)
    for x, y, weight in zip(first, second, weights, strict=True):
        n, _, height, width = x.shape
        for i, h, w in np.ndindex(n, height, width):
            a, b = (z[i, :, h, w] / (np.sqrt((z[i, :, h, w] ** 2).sum()) + 1e-10) for z in (x, y))
            wanted[i] += (weight * (a - b) ** 2).sum() / (height * width)
    np.testing.assert_allclose(quality.lpips_distance(first, second, weights), wanted, rtol=1e-12)
    np.testing.assert_array_equal(quality.lpips_distance(first, first, weights), 0)
