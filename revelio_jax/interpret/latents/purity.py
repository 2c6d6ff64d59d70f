"""Measure the label purity of the top samples of a latent.

As in Revelio (arXiv 2411.16725), the measures are taken on the ten strongest labeled samples of each latent that fires
on more than ten samples:

    sigma     standard deviation of the class numbers; classes are numbered in sorted order
    entropy   entropy of the classes in bits: 0 for one class, log2(10) for ten
    purity    share of the most frequent class

sigma is the paper's measure. It depends on the order of the classes; the other two do not. :func:`chance` returns the
expected values for ten random samples. A latent encodes the label if its sigma and entropy are below these values and
its purity is above. Small classes limit purity: with three samples per class it is at most 0.3. Do not compare purity
between labels or stores whose classes differ in size.
"""

import dataclasses
import typing

import numpy as np
import pyarrow
import scipy.stats

from revelio_jax.errors import InputError
from revelio_jax.interpret.latents.summary import MeanOverLatents
from revelio_jax.store.parquet import compute

STRONGEST = 10  # labeled top samples to measure
MEASURES = ("sigma", "entropy", "purity")
NO_LABELS = ("id", "prompt", "seed", "image")  # columns that extraction writes
DRAWS = 10_000  # random draws of ten samples for the values of chance
RESAMPLES = 1000  # of the bootstrap
BLOCK = 1 << 16  # lists measured together


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
    """A label column: its classes, and the class number of each sample, int32 [samples], -1 without a class."""

    name: str
    classes: tuple[str, ...]
    of_sample: np.ndarray


class PurityMeasures(typing.NamedTuple):
    """The measures of lists of samples, float32 [lists], NaN with too few labeled samples.

    ``majority``, int32 [lists], is the most frequent class, -1 with too few labeled samples.
    """

    sigma: np.ndarray
    entropy: np.ndarray
    purity: np.ndarray
    majority: np.ndarray


def read_labels(table: pyarrow.Table, names: tuple[str, ...]) -> list[Label]:
    """Return the labels ``names`` of the samples; without names, every column that can be a label.

    A label column holds texts or integers and has at least two classes, one of which has several samples. Raise
    InputError if a name is not a column of texts or integers.
    """
    columns = {}
    for field in table.schema:
        kind = field.type.value_type if pyarrow.types.is_dictionary(field.type) else field.type
        texts = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
        if texts or pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind):
            columns[field.name] = table[field.name]
    for name in names:
        if name not in columns:
            raise InputError(
                f"config.interpret.labels has {name!r}; it must be columns of the samples: {', '.join(columns)}"
            )
    labels = [as_label(name, columns[name]) for name in names or columns if names or name not in NO_LABELS]
    return [label for label in labels if names or _is_label(label)]


def as_label(name: str, column: pyarrow.ChunkedArray) -> Label:
    """Return a column as a label with sorted classes; null and "" are not classes."""
    column = column.combine_chunks()
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pyarrow.types.is_integer(column.type) or pyarrow.types.is_boolean(column.type)):
        column = compute.if_else(compute.equal(column, ""), None, column)
    values = compute.unique(column).drop_null()
    values = values.take(compute.sort_indices(values))
    numbers = compute.index_in(column, value_set=values)
    of_sample = compute.fill_null(numbers, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return Label(name, tuple(str(value) for value in values.to_pylist()), of_sample)


def _is_label(label: Label) -> bool:
    counts = np.bincount(label.of_sample[label.of_sample >= 0])
    return len(counts) > 1 and counts.max() > 1


def measure(label: Label, sample_LM: np.ndarray, samples_L: np.ndarray, top: int) -> PurityMeasures:
    """Return the measures of L lists of samples.

    ``sample_LM``, int32 [L, M], holds sample numbers, strongest first, -1 in unused places. ``samples_L`` is the
    number of samples on which each latent fires. ``top`` is config.interpret.top; if it is below ten, ``top``
    samples are measured instead of ten.
    """
    count = min(STRONGEST, top)
    blocks = []
    for start in range(0, len(sample_LM), BLOCK):
        samples = sample_LM[start : start + BLOCK]
        classes = np.where(samples < 0, -1, label.of_sample[samples])
        order = np.argsort(classes < 0, axis=1, kind="stable")[:, :count]  # labeled samples first
        classes = np.take_along_axis(classes, order, 1)
        enough = (samples_L[start : start + BLOCK] > count) & (classes >= 0).all(1)
        if classes.shape[1] < count:
            enough[:] = False
        blocks.append(_measure_classes(classes, enough))
    return PurityMeasures(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def _measure_classes(classes_LN: np.ndarray, enough_L: np.ndarray) -> PurityMeasures:
    classes_LN = np.sort(classes_LN, axis=1)
    # The frequency of each sample's class. Of equally frequent classes the first is the majority.
    same_LN = (classes_LN[:, :, None] == classes_LN[:, None, :]).sum(2, dtype=np.int32)
    count = classes_LN.shape[1]
    majority_L = np.take_along_axis(classes_LN, same_LN.argmax(1)[:, None], 1)[:, 0]
    entropy_L = np.log2(count / same_LN).mean(1) + 0.0  # equals the sum over classes of p log2(1 / p)
    sigma_L, entropy_L, purity_L = (
        np.where(enough_L, values, np.nan).astype(np.float32)
        for values in (classes_LN.std(1), entropy_L, same_LN.max(1) / count)
    )
    return PurityMeasures(
        sigma_L,
        entropy_L,
        purity_L,
        np.where(enough_L, majority_L, -1).astype(np.int32),
    )


def chance(label: Label, samples: np.ndarray, top: int) -> dict[str, float] | None:
    """Return the mean measures of ten samples drawn at random from the sample numbers ``samples``.

    ``top`` has the same meaning as in :func:`measure`. Return None if fewer than ten samples have a class.
    """
    classes = label.of_sample[samples]
    classes = classes[classes >= 0]
    count = min(STRONGEST, top)
    if len(classes) < count:
        return None
    random = np.random.default_rng(0)
    draws = np.stack([random.choice(len(classes), count, replace=False) for _ in range(DRAWS)])
    measures = _measure_classes(classes[draws], np.ones(DRAWS, bool))
    return {name: float(getattr(measures, name).mean(dtype=np.float64)) for name in MEASURES}


def interval(values: np.ndarray) -> MeanOverLatents | None:
    """Return the mean of ``values`` [latents] and its 95 % bootstrap interval, ignoring NaN.

    Return None if no value is finite.
    """
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return None
    low = high = values.mean()
    if values.min() < values.max():
        bootstrap = scipy.stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, (1 << 22) // len(values)),
            method="percentile",
            rng=np.random.default_rng(0),
        )
        low, high = bootstrap.confidence_interval
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "latents": len(values)}
