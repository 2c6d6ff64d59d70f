"""Measure the quality of images and their distance to the plain pipeline's images.

No figure of this module says whether a concept is removed. Removal is measured by judges, retention by this module and
:mod:`revelio_jax.benchmark.neighbors`, and time by :mod:`revelio_jax.benchmark.timing`; they are reported apart.
The caller computes the features.
"""

from collections.abc import Sequence

import numpy as np

from revelio_jax.errors import InputError


def frechet_distance(features_ND: np.ndarray, reference_MD: np.ndarray) -> float:
    """Return the Fréchet distance between normal distributions fitted to two sets of features.

    With means m and s and sample covariances A and B, it is |m - s|^2 + Tr(A + B - 2 (A B)^(1/2)), computed in float64.
    It is the FID if the features are the 2,048 outputs of InceptionV3's last pooling layer. Source: Heusel et al.
    (2017), arXiv 1706.08500.

    Raise InputError if a set has no more images than features: its covariance is singular, and the distance depends
    more on the number of images than on the images.
    """
    features_ND, reference_MD = np.asarray(features_ND, np.float64), np.asarray(reference_MD, np.float64)
    width = _same_width(features_ND, reference_MD)
    for name, rows in (("images", features_ND), ("reference", reference_MD)):
        if len(rows) <= width:
            raise InputError(
                f"FID needs more images than features: the {name} are {len(rows):,} for {width:,} features; "
                f"use at least {width + 1:,} images or fewer features"
            )
    mean_D = features_ND.mean(0) - reference_MD.mean(0)
    first_DD, second_DD = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (features_ND, reference_MD))
    values_D, vectors_DD = np.linalg.eigh(first_DD)
    root_DD = (vectors_DD * np.sqrt(values_D.clip(0))) @ vectors_DD.T
    # The eigenvalues of A B are those of the symmetric matrix A^(1/2) B A^(1/2), which are real.
    cross = np.sqrt(np.linalg.eigvalsh(root_DD @ second_DD @ root_DD).clip(0)).sum()
    distance = mean_D @ mean_D + np.trace(first_DD) + np.trace(second_DD) - 2 * cross
    return max(float(distance), 0.0)  # equal sets give a rounding error of either sign


def clip_scores(images_ND: np.ndarray, texts_ND: np.ndarray) -> np.ndarray:
    """Return 100 cos(image, text) for each image and its own text, float64 [N].

    Tables report the mean with CLIP ViT-L/14. Source: Hessel et al. (2021), arXiv 2104.08718, without their factor 2.5
    instead of 100; torchmetrics and the papers on concept erasure use 100. Negative scores are kept, so that intervals
    can be computed.
    """
    return 100 * cosines(images_ND, texts_ND)


def cosines(features_ND: np.ndarray, others_ND: np.ndarray) -> np.ndarray:
    """Return the cosine of each row with the same row of ``others_ND``, float64 [N].

    With the features of images and of the plain pipeline's images at the same seeds, 1 means that nothing changed.
    Raise InputError if a row is zero.
    """
    features_ND, others_ND = np.asarray(features_ND, np.float64), np.asarray(others_ND, np.float64)
    _same_width(features_ND, others_ND)
    if len(features_ND) != len(others_ND):
        raise InputError(f"features are for {len(features_ND)} and {len(others_ND)} samples; the numbers must be equal")
    norms_N = np.linalg.norm(features_ND, axis=1) * np.linalg.norm(others_ND, axis=1)
    if (norms_N == 0).any():
        raise InputError(f"the features of sample {int(np.flatnonzero(norms_N == 0)[0])} are all zero")
    return (features_ND * others_ND).sum(1) / norms_N


def pixel_rmse(images: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """Return the root of the mean squared difference to the plain pipeline's image at the same seed, float64 [N].

    Both are uint8 [N, height, width, 3]. Differences are shares of the range 0 .. 255, so black against white is 1.
    Raise InputError if the shapes differ or the images are not uint8.
    """
    if images.shape != plain.shape or images.ndim != 4 or images.dtype != np.uint8 or plain.dtype != np.uint8:
        raise InputError(
            f"images are {images.dtype} {images.shape} and {plain.dtype} {plain.shape}; both must be uint8 "
            "[N, height, width, 3]"
        )
    per_image = [
        np.sqrt(np.square(a.astype(np.float64) - b.astype(np.float64)).mean()) / 255
        for a, b in zip(images, plain, strict=True)  # one at a time: float64 needs eight times the memory of uint8
    ]
    return np.array(per_image)


def lpips_distance(
    layers: Sequence[np.ndarray], plain_layers: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the LPIPS distance of each image to the plain pipeline's image at the same seed, float64 [N].

    ``layers`` and ``plain_layers`` have the activations [N, C, H, W] of each layer of a network, ``weights`` the weight
    [C] of each channel. Activations are scaled to length 1 over the channels; the distance is the weighted sum of
    squared differences over channels, averaged over positions and added over layers. Source: Zhang et al. (2018), arXiv
    1801.03924, equation 1.
    """
    total = np.zeros(len(layers[0]))
    for x_NCHW, y_NCHW, weight_C in zip(layers, plain_layers, weights, strict=True):
        squared_NCHW = np.square(_unit_length(x_NCHW) - _unit_length(y_NCHW))
        total += np.einsum("nchw,c->nhw", squared_NCHW, np.asarray(weight_C, np.float64)).mean((1, 2))
    return total


def _unit_length(x_NCHW: np.ndarray) -> np.ndarray:
    x_NCHW = np.asarray(x_NCHW, np.float64)
    # The published weights were fitted with this small constant.
    return x_NCHW / (np.linalg.norm(x_NCHW, axis=1, keepdims=True) + 1e-10)


def _same_width(first: np.ndarray, second: np.ndarray) -> int:
    """Return the number of features. Raise InputError if it differs or if features are not finite."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"features have the shapes {first.shape} and {second.shape}; both must be [samples, features]")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("features must be finite")
    return first.shape[1]
