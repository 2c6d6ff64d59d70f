"""k-sparse probes: how well the k most telling features separate a class from all others.

For each class, the features with the largest difference of means between its samples and the others are selected, as in
Gurnee et al. (arXiv 2305.01610) and SAEBench (arXiv 2503.09532). A logistic regression on them is measured by its AUROC
and its balanced accuracy on test samples. SAEBench measures accuracy on as many samples of the class as of others,
whose expectation is the balanced accuracy. A class that one latent represents needs no more than k = 1.
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
    """AUROC and balanced accuracy [classes, len(KS)] on the test samples, and the best single feature of each class."""

    classes: np.ndarray
    auroc: np.ndarray
    balanced_accuracy: np.ndarray
    best: list[BestFeature]


def measure(fitted: Samples, test: Samples) -> SparseResult:
    """Train probes for the most frequent classes. Features and thresholds are chosen without the test samples."""
    chosen = most_frequent(test[1])
    order_CD = np.stack([np.argsort(-np.abs(difference(*fitted, number)), kind="stable") for number in chosen])
    is_class_CN = fitted[1] == chosen[:, None]
    auroc, accuracy = np.empty((2, len(chosen), len(KS)))
    most_CK = order_CD[:, : max(KS)]
    x_CNK = fitted[0][:, most_CK].swapaxes(0, 1)
    for i, k in enumerate(KS):
        used_K = np.arange(most_CK.shape[1]) < k  # the others are 0, so that one shape compiles once
        w_CK, b_C = fit(x_CNK * used_K, is_class_CN)
        for c, number in enumerate(chosen):
            scores_N = (test[0][:, most_CK[c]] * used_K) @ w_CK[c] + b_C[c]
            auroc[c, i] = area_under_roc(scores_N, test[1] == number)
            accuracy[c, i] = _balanced_accuracy(scores_N > log_odds(is_class_CN[c]), test[1] == number)
    best = [
        _best_feature(fitted[0], is_class_CN[c], test[0], test[1] == number, order_CD[c, :CANDIDATES])
        for c, number in enumerate(chosen)
    ]
    return SparseResult(chosen, auroc, accuracy, best)


def most_frequent(class_N: np.ndarray) -> np.ndarray:
    """Return the MOST_CLASSES most frequent classes, ascending."""
    numbers, counts = np.unique(class_N, return_counts=True)
    return np.sort(numbers[np.argsort(-counts, kind="stable")[:MOST_CLASSES]])


def log_odds(is_class_N: np.ndarray) -> float:
    """Return the logit at which a probe finds the class as likely as all others together, whatever its frequency."""
    return float(np.log(is_class_N.sum() / (~is_class_N).sum()))


def _balanced_accuracy(predicted_N: np.ndarray, is_class_N: np.ndarray) -> float:
    return float((predicted_N[is_class_N].mean() + (~predicted_N[~is_class_N]).mean()) / 2)


def area_under_roc(scores_N: np.ndarray, is_class_N: np.ndarray) -> float:
    """Return the probability that a sample of the class has a higher score than another sample; ties count half."""
    ranks_N, count = scipy.stats.rankdata(scores_N), int(is_class_N.sum())
    return float((ranks_N[is_class_N].sum() - count * (count + 1) / 2) / (count * (len(scores_N) - count)))


def difference(x_ND: np.ndarray, class_N: np.ndarray, number: int) -> np.ndarray:
    """Return the difference of the means of each feature between a class and the others, float64 [D]."""
    is_class_N = class_N == number
    return x_ND[is_class_N].mean(0, dtype=np.float64) - x_ND[~is_class_N].mean(0, dtype=np.float64)


def fit(x_CNK: np.ndarray, is_class_CN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a probe per class on features of mean 0 and variance 1. Return weights [C, K] and biases [C] for ``x_CNK``.

    The score of a sample is the log odds <w, x> + b.
    """
    mean_CK, deviation_CK = x_CNK.mean(1), np.maximum(x_CNK.std(1), SMALLEST)
    scaled_CNK = (x_CNK - mean_CK[:, None]) / deviation_CK[:, None]
    w_CK, b_C = map(np.asarray, _fit_all(scaled_CNK, is_class_CN.astype(np.int32)))
    w_CK = w_CK / deviation_CK
    return w_CK, b_C - (w_CK * mean_CK).sum(1)


@jax.jit
def _fit_all(x_CNK: jax.Array, is_class_CN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Fit the probes of all classes: weights [C, K] and biases [C] of the log odds."""

    def fit_one(x_NK: jax.Array, is_class_N: jax.Array) -> tuple[jax.Array, jax.Array]:
        W_1K2, b_12 = linear.fit(x_NK, is_class_N, np.array([PENALTY], np.float32), 2)
        return W_1K2[0, :, 1] - W_1K2[0, :, 0], b_12[0, 1] - b_12[0, 0]

    return jax.vmap(fit_one)(x_CNK, is_class_CN)


def best_f1(value_N: np.ndarray, is_class_N: np.ndarray) -> tuple[float, float]:
    """Return the highest F1 of predicting the class at and above a threshold, and that threshold."""
    order = np.argsort(-value_N, kind="stable")
    value_N, hits_N = value_N[order], np.cumsum(is_class_N[order])
    f1_N = 2 * hits_N / (np.arange(1, len(order) + 1) + is_class_N.sum())
    f1_N[:-1][value_N[:-1] == value_N[1:]] = 0  # a threshold cannot part equal values
    at = int(f1_N.argmax())
    return float(f1_N[at]), float(value_N[at])


def _best_feature(
    x_ND: np.ndarray, is_class_N: np.ndarray, x_test_ND: np.ndarray, is_class_test_N: np.ndarray, candidates: np.ndarray
) -> BestFeature:
    """Return the candidate with the highest F1 on ``x_ND``, at its best threshold, and its F1 on the test samples."""
    found: list[tuple[float, float, int]] = []
    differences = x_ND[is_class_N].mean(0) - x_ND[~is_class_N].mean(0)
    for feature in candidates:
        found.append((*best_f1(np.copysign(1, differences[feature]) * x_ND[:, feature], is_class_N), int(feature)))
    _, threshold, feature = max(found, key=lambda each: each[0])
    fires_N = np.copysign(1, differences[feature]) * x_test_ND[:, feature] >= threshold
    hits = int((fires_N & is_class_test_N).sum())
    return BestFeature(feature, 2 * hits / max(int(fires_N.sum() + is_class_test_N.sum()), 1))
