"""How pure a latent's strongest samples are in the labels that the samples have.

Of the ten strongest samples that have a label, of latents that fire on more than ten (as Revelio, arXiv
2411.16725, has it):

    sigma     standard deviation of the class numbers, classes being numbered in sorted order
    entropy   of the classes, in bits: 0 where there is one, log2(10) where there are ten
    purity    share of the most frequent class

sigma is the paper's; it depends on the order of the classes, the other two do not. What ten samples drawn at
random would have is :func:`chance`: sigma and entropy below it, and purity above it, say that latents know
of the label. Classes of fewer than ten samples bound purity: with three of each it is 0.3 at most, so it does
not compare labels, or stores, whose classes are of other sizes.
"""

import dataclasses
import typing

import numpy as np
import pyarrow
import pyarrow.compute
import scipy.stats

from revelio_jax.errors import InputError

STRONGEST = 10
MEASURES = ("sigma", "entropy", "purity")
NO_LABELS = ("id", "prompt", "seed", "image")  # columns that extraction makes
DRAWS = 10_000  # of ten samples at random
RESAMPLES = 1000
BLOCK = 1 << 16  # lists of ten that are measured together


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
    """A column of the samples as class numbers, int32 [samples], -1 where a sample has none."""

    name: str
    classes: tuple[str, ...]
    of_sample: np.ndarray


class Measured(typing.NamedTuple):
    """float32 [lists], NaN where a list has too few, and int32 [lists] the most frequent class, -1 there."""

    sigma: np.ndarray
    entropy: np.ndarray
    purity: np.ndarray
    majority: np.ndarray


def read_labels(table: pyarrow.Table, wanted: tuple[str, ...]) -> list[Label]:
    """The labels ``wanted`` of a store's samples; where none is named, every one that can be.

    That is a column of texts or whole numbers with two classes or more, one of them of several samples.
    Raises InputError.
    """
    columns = {}
    for field in table.schema:
        kind = field.type.value_type if pyarrow.types.is_dictionary(field.type) else field.type
        texts = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
        if texts or pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind):
            columns[field.name] = table[field.name]
    for name in wanted:
        if name not in columns:
            raise InputError(f"config.interpret.labels has {name!r}; the samples have the columns {', '.join(columns)}")
    labels = [as_label(name, columns[name]) for name in wanted or columns if wanted or name not in NO_LABELS]
    return [label for label in labels if wanted or _is_label(label)]


def as_label(name: str, column: pyarrow.ChunkedArray) -> Label:
    """A column as classes in sorted order, numbers by size; null and "" are no class."""
    column = column.combine_chunks()
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pyarrow.types.is_integer(column.type) or pyarrow.types.is_boolean(column.type)):
        column = pyarrow.compute.if_else(pyarrow.compute.equal(column, ""), None, column)
    values = pyarrow.compute.unique(column).drop_null()
    values = values.take(pyarrow.compute.sort_indices(values))
    numbers = pyarrow.compute.index_in(column, value_set=values)
    of_sample = pyarrow.compute.fill_null(numbers, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return Label(name, tuple(str(value) for value in values.to_pylist()), of_sample)


def _is_label(label: Label) -> bool:
    counts = np.bincount(label.of_sample[label.of_sample >= 0])
    return len(counts) > 1 and counts.max() > 1


def measure(label: Label, sample_LM: np.ndarray, samples_L: np.ndarray, top: int) -> Measured:
    """Purity of lists of samples, strongest first, int32 [L, M], -1 where there is none.

    ``samples_L`` has on how many each fires, ``top`` how many are kept at most: where that is less than ten,
    as many count.
    """
    count = min(STRONGEST, top)
    parts = []
    for start in range(0, len(sample_LM), BLOCK):
        part = sample_LM[start : start + BLOCK]
        classes = np.where(part < 0, -1, label.of_sample[part])
        order = np.argsort(classes < 0, axis=1, kind="stable")[:, :count]  # those with a class first
        classes = np.take_along_axis(classes, order, 1)
        enough = (samples_L[start : start + BLOCK] > count) & (classes >= 0).all(1)
        if classes.shape[1] < count:
            enough[:] = False
        parts.append(_of_classes(classes, enough))
    return Measured(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _of_classes(classes_LN: np.ndarray, enough_L: np.ndarray) -> Measured:
    classes_LN = np.sort(classes_LN, axis=1)
    # How often each sample's class occurs; of equally frequent classes the first is the majority.
    same_LN = (classes_LN[:, :, None] == classes_LN[:, None, :]).sum(2, dtype=np.int32)
    count = classes_LN.shape[1]
    majority_L = np.take_along_axis(classes_LN, same_LN.argmax(1)[:, None], 1)[:, 0]
    measured = (
        classes_LN.std(1),
        np.log2(count / same_LN).mean(1) + 0.0,  # the sum over classes of p log2(1 / p)
        same_LN.max(1) / count,
    )
    return Measured(
        *(np.where(enough_L, values, np.nan).astype(np.float32) for values in measured),
        np.where(enough_L, majority_L, -1).astype(np.int32),
    )


def chance(label: Label, samples: np.ndarray, top: int) -> dict[str, float] | None:
    """What to expect of ten of ``samples`` (numbers of samples) at random; None where ten have no label."""
    classes = label.of_sample[samples]
    classes = classes[classes >= 0]
    count = min(STRONGEST, top)
    if len(classes) < count:
        return None
    random = np.random.default_rng(0)
    drawn = np.stack([random.choice(len(classes), count, replace=False) for _ in range(DRAWS)])
    measured = _of_classes(classes[drawn], np.ones(DRAWS, bool))
    return {name: float(getattr(measured, name).mean(dtype=np.float64)) for name in MEASURES}


def interval(values: np.ndarray) -> dict[str, float] | None:
    """Mean over latents, and its 95 % bootstrap interval: mean, low, high, latents. NaN is left out."""
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return None
    low = high = values.mean()
    if values.min() < values.max():
        draws = scipy.stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, (1 << 22) // len(values)),
            method="percentile",
            rng=np.random.default_rng(0),
        )
        low, high = draws.confidence_interval
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "latents": len(values)}
