"""k-sparse probes: how well the k most telling features separate a class from all others.

For each class, the features with the largest difference of means between its samples and the others are selected, as in
Gurnee et al. (arXiv 2305.01610) and SAEBench. A logistic regression on them is measured by its AUROC on test samples.
A class that one latent represents needs no more than k = 1.
"""

import typing

import jax
import numpy as np
import scipy.stats

from revelio_jax.interpret.probes import linear

KS = (1, 2, 5, 10, 50)  # features of a probe
MOST_CLASSES = 20  # the most frequent classes are probed
CANDIDATES = 50  # features, by difference of means, among which the best single one is searched
PENALTY = 1e-3  # s of the penalty (s / 2) |W|^2, which is added to the mean loss
SMALLEST = 1e-8  # differences below this are rounding errors

Samples = tuple[np.ndarray, np.ndarray]
"""Features, float32 [N, D], and classes, int32 [N]."""


class BestFeature(typing.NamedTuple):
    """The feature that predicts a class best, and its F1 on the test samples.

    It predicts the class above a threshold, or below one if it is smaller for the class.
    """

    feature: int
    f1: float


class SparseResult(typing.NamedTuple):
    """AUROC [classes, len(KS)] on the test samples, and the best single feature of each of ``classes``."""

    classes: np.ndarray
    auroc: np.ndarray
    best: list[BestFeature]


def measure(fitted: Samples, test: Samples) -> SparseResult:
    """Train probes for the most frequent classes. Features and thresholds are chosen without the test samples."""
    numbers, counts = np.unique(test[1], return_counts=True)
    chosen = np.sort(numbers[np.argsort(-counts, kind="stable")[:MOST_CLASSES]])
    order_CD = np.stack([_by_difference(*fitted, number) for number in chosen])
    is_class_CN = fitted[1] == chosen[:, None]
    auroc = np.empty((len(chosen), len(KS)))
    most_CK = order_CD[:, : max(KS)]
    x_CNK = fitted[0][:, most_CK].swapaxes(0, 1)
    for i, k in enumerate(KS):
        used_K = np.arange(most_CK.shape[1]) < k  # the others are 0, so that one shape compiles once
        probes = _fit(x_CNK * used_K, is_class_CN)
        for c, number in enumerate(chosen):
            auroc[c, i] = area_under_roc(probes(c, test[0][:, most_CK[c]] * used_K), test[1] == number)
    best = [
        _best_feature(fitted[0], is_class_CN[c], test[0], test[1] == number, order_CD[c, :CANDIDATES])
        for c, number in enumerate(chosen)
    ]
    return SparseResult(chosen, auroc, best)


def area_under_roc(scores_N: np.ndarray, is_class_N: np.ndarray) -> float:
    """Return the probability that a sample of the class has a higher score than another sample; ties count half."""
    ranks_N, count = scipy.stats.rankdata(scores_N), int(is_class_N.sum())
    return float((ranks_N[is_class_N].sum() - count * (count + 1) / 2) / (count * (len(scores_N) - count)))


def _by_difference(x_ND: np.ndarray, class_N: np.ndarray, number: int) -> np.ndarray:
    """Return all features, those with the largest difference of means between a class and the others first."""
    is_class_N = class_N == number
    difference_D = x_ND[is_class_N].mean(0, dtype=np.float64) - x_ND[~is_class_N].mean(0, dtype=np.float64)
    return np.argsort(-np.abs(difference_D), kind="stable")


def _fit(x_CNK: np.ndarray, is_class_CN: np.ndarray) -> typing.Callable[[int, np.ndarray], np.ndarray]:
    """Fit a probe per class. The result maps the number of a class and features [N, K] to scores [N]."""
    mean_C1K = x_CNK.mean(1, keepdims=True)
    deviation_C1K = np.maximum(x_CNK.std(1, keepdims=True), SMALLEST)
    w_CK, b_C = map(np.asarray, _fit_all((x_CNK - mean_C1K) / deviation_C1K, is_class_CN.astype(np.int32)))
    return lambda c, x_NK: (x_NK - mean_C1K[c]) / deviation_C1K[c] @ w_CK[c] + b_C[c]


@jax.jit
def _fit_all(x_CNK: jax.Array, is_class_CN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Fit the probes of all classes: weights [C, K] and biases [C] of the log odds."""

    def fit_one(x_NK: jax.Array, is_class_N: jax.Array) -> tuple[jax.Array, jax.Array]:
        W_1K2, b_12 = linear.fit(x_NK, is_class_N, np.array([PENALTY], np.float32), 2)
        return W_1K2[0, :, 1] - W_1K2[0, :, 0], b_12[0, 1] - b_12[0, 0]

    return jax.vmap(fit_one)(x_CNK, is_class_CN)


def _best_feature(
    x_ND: np.ndarray, is_class_N: np.ndarray, x_test_ND: np.ndarray, is_class_test_N: np.ndarray, candidates: np.ndarray
) -> BestFeature:
    """Return the candidate with the highest F1 on ``x_ND``, at its best threshold, and its F1 on the test samples."""
    found: list[tuple[float, float, int]] = []
    differences = x_ND[is_class_N].mean(0) - x_ND[~is_class_N].mean(0)
    for feature in candidates:
        value_N = np.copysign(1, differences[feature]) * x_ND[:, feature]
        order = np.argsort(-value_N, kind="stable")
        value_N, hits_N = value_N[order], np.cumsum(is_class_N[order])
        f1_N = 2 * hits_N / (np.arange(1, len(order) + 1) + is_class_N.sum())
        f1_N[:-1][value_N[:-1] == value_N[1:]] = 0  # a threshold cannot part equal values
        at = int(f1_N.argmax())
        found.append((float(f1_N[at]), float(value_N[at]), int(feature)))
    _, threshold, feature = max(found, key=lambda each: each[0])
    fires_N = np.copysign(1, differences[feature]) * x_test_ND[:, feature] >= threshold
    hits = int((fires_N & is_class_test_N).sum())
    return BestFeature(feature, 2 * hits / max(int(fires_N.sum() + is_class_test_N.sum()), 1))
