"""Absorption of classes on a hierarchy of labels: latents of "apple" that replace the latent of "food".

For each class, a linear probe on the activations gives its direction, and sparse probes on the latents its main
latents. Absorption is measured on the test samples of the class that the linear probe recognizes, on means over the
positions: the decoder is linear, so means of latents decode to means of reconstructions, and a mean is 0 if the latent
fires nowhere. See :mod:`revelio_jax.interpret.measures.absorption` for the equations.

Differences from SAEBench: latents are ranked by the difference of their means instead of the weights of a probe with an
L1 penalty, and F1 is taken at the best threshold on the samples that the probes are trained on.
"""

import typing

import numpy as np

from revelio_jax.interpret.latents.dictionary import Dictionary
from revelio_jax.interpret.latents.purity import Label
from revelio_jax.interpret.measures.absorption import MOST_MAIN, absorption, main_latents
from revelio_jax.interpret.probes import sparse

BLOCK = 256  # samples measured together
LISTED = 10  # finer classes listed for a class


class AbsorbedClass(typing.TypedDict):
    """Absorption of a class: means over the test samples that the linear probe recognizes.

    ``main`` are its main latents, and ``f1`` is the F1 of the sparse probe on them. ``finer`` has the values of the
    finer label with the largest share of fully absorbed samples: that share, their number of samples, and the latent
    that absorbs most of them.
    """

    fraction: float
    full: float
    samples: int
    main: list[int]
    f1: float
    finer: dict[str, dict[str, typing.Any]]


class Inputs(typing.NamedTuple):
    """Means of N samples: activations [N, D], latents [N, F], classes [N], and the sample numbers [N]."""

    x_ND: np.ndarray
    z_NF: np.ndarray
    class_N: np.ndarray
    number_N: np.ndarray


def measure(
    fitted: Inputs, test: Inputs, latents: Dictionary, names: typing.Sequence[str], finer: Label | None
) -> dict[str, AbsorbedClass]:
    """Return the absorption of the most frequent classes by their names, of those with a recognized test sample.

    ``names`` are the names of the classes. Main latents and probes are chosen without the test samples.
    """
    result: dict[str, AbsorbedClass] = {}
    for number in sparse.most_frequent(test.class_N):
        is_class_N = fitted.class_N == number
        w_1D, b_1 = sparse.fit(fitted.x_ND[None], is_class_N[None])
        is_seen_N = (test.class_N == number) & (test.x_ND @ w_1D[0] + b_1[0] > sparse.log_odds(is_class_N))
        if not is_seen_N.any():
            continue
        main, f1 = _main_latents(fitted, is_class_N, sparse.difference(fitted.z_NF, fitted.class_N, number))
        fraction_N, is_full_N, strongest_N = _absorption(test, np.flatnonzero(is_seen_N), latents, w_1D[0], main)
        result[names[int(number)]] = {
            "fraction": float(fraction_N.mean()),
            "full": float(is_full_N.mean()),
            "samples": len(fraction_N),
            "main": main.tolist(),
            "f1": f1,
            "finer": _finer(finer, test.number_N[is_seen_N], is_full_N, strongest_N) if finer else {},
        }
    return result


def _main_latents(fitted: Inputs, is_class_N: np.ndarray, difference_F: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the main latents of a class and the F1 of the sparse probe on them."""
    order = np.argsort(-difference_F, kind="stable")[:MOST_MAIN]  # only latents that fire more on the class
    z_NK, f1_of_count = fitted.z_NF[:, order], []
    for count in range(1, len(order) + 1):
        used_NK = z_NK * (np.arange(len(order)) < count)  # the others are 0, so that one shape compiles once
        w_1K, b_1 = sparse.fit(used_NK[None], is_class_N[None])
        f1_of_count.append(sparse.best_f1(used_NK @ w_1K[0] + b_1[0], is_class_N)[0])
        if main_latents(f1_of_count) < count:
            break
    count = main_latents(f1_of_count)
    return order[:count], f1_of_count[count - 1]


def _absorption(
    test: Inputs, samples: np.ndarray, latents: Dictionary, direction_D: np.ndarray, main: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return the fields of AbsorbedSamples for the samples with the indices ``samples``."""
    assert latents.W_dec_FD is not None  # row_keys of the experiment leaves other latents out
    W_dec_FD, unit_D = latents.W_dec_FD, direction_D / np.linalg.norm(direction_D)
    projection_N = (test.x_ND[samples] - latents.b_dec_D) @ unit_D
    parts = [
        absorption(test.z_NF[samples[part]], projection_N[part], W_dec_FD, direction_D, main)
        for part in (slice(start, start + BLOCK) for start in range(0, len(samples), BLOCK))
    ]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _finer(finer: Label, number_N: np.ndarray, is_full_N: np.ndarray, strongest_N: np.ndarray) -> dict[str, typing.Any]:
    """Return the finer classes with the largest share of fully absorbed samples, of those that have one."""
    class_N, rows = finer.of_sample[number_N], []
    for number in np.unique(class_N[is_full_N & (class_N >= 0)]):
        here = class_N == number
        absorbing, counts = np.unique(strongest_N[here & is_full_N], return_counts=True)
        share = float(is_full_N[here].mean())
        rows.append(
            (
                finer.classes[number],
                {"full": share, "samples": int(here.sum()), "absorbing": int(absorbing[counts.argmax()])},
            )
        )
    return dict(sorted(rows, key=lambda row: (-row[1]["full"], -row[1]["samples"]))[:LISTED])
