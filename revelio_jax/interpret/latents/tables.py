"""Compute the tables and arrays of :mod:`.results` from the accumulated statistics."""

import collections
import dataclasses
import typing

import numpy as np
import pyarrow

from revelio_jax.interpret.latents import purity
from revelio_jax.interpret.latents.accumulator import BINS, WHOLE, LatentAccumulator
from revelio_jax.interpret.latents.purity import Label
from revelio_jax.interpret.latents.top_samples import RankedSamples

WORDS = 5  # tokens shown for a latent
PADDING = "[padding]"
BLOCK = 4096  # latents whose weaker samples are chosen together

Columns = dict[str, typing.Any]
"""The columns of a table, numpy or pyarrow arrays, by name."""


@dataclasses.dataclass(frozen=True, eq=False)
class ResultTables:
    """The tables and the arrays of :class:`.results.Results`, by name."""

    tables: dict[str, pyarrow.Table]
    arrays: dict[str, np.ndarray]


def make_tables(
    accumulator: LatentAccumulator,
    labels: list[Label],
    tokens: pyarrow.ListArray | None,
    top: int,
    neighbors: dict[str, np.ndarray],
) -> ResultTables:
    """Return all tables and arrays.

    ``tokens`` has the list of tokens of each sample, None for images. ``top`` is config.interpret.top.
    ``neighbors`` are the arrays of neighbors, which are returned unchanged.
    """
    strata = accumulator.strata.names
    ranked, ranked_of_strata, profiles = accumulator.ranked()
    weaker = _weaker(accumulator, ranked)
    latents = _latents(accumulator, ranked) | {"words": _words(ranked, tokens)}
    for label in labels:
        latents |= _purity_columns(label, ranked.sample, accumulator.samples, top)
    if strata:
        shape = (accumulator.latents, accumulator.strata.counted, top)
        of_strata = RankedSamples(*(array.reshape(shape)[:, : len(strata)] for array in ranked_of_strata))
        by_stratum = _strata(accumulator, of_strata)
        samples_of_strata = accumulator.samples_of[:, : len(strata)].reshape(-1)
        for label in labels:
            by_stratum |= _purity_columns(label, of_strata.sample.reshape(-1, top), samples_of_strata, top)
    else:
        of_strata, by_stratum = None, _empty_strata(labels)
    samples = _samples(accumulator, ranked, weaker, of_strata)
    tables = {"latents": latents, "strata": by_stratum, "samples": samples}
    arrays = {
        "histogram": accumulator.histogram,
        "profile": profiles,
        "drawn": accumulator.random_samples.astype(np.int32),
        "fires": accumulator.fires,
        **neighbors,
    }
    return ResultTables({name: pyarrow.table(columns) for name, columns in tables.items()}, arrays)


def _latents(accumulator: LatentAccumulator, ranked: RankedSamples) -> Columns:
    rows, maps = accumulator.rows_of.sum(1), accumulator.maps_of.sum(1)
    return {
        "latent": np.arange(accumulator.latents, dtype=np.int32),
        "rows": rows,
        "samples": accumulator.samples,
        "frequency": rows / max(accumulator.rows_read, 1),
        "mean": _ratio(accumulator.sum_of.sum(1), rows),
        "max": ranked.value[:, 0],
        "spread": _ratio(accumulator.spread_of.sum(1) / WHOLE, maps),
    }


def _strata(accumulator: LatentAccumulator, of_strata: RankedSamples) -> Columns:
    """Return the columns of the table of strata: one row per latent and stratum."""
    names = accumulator.strata.names
    named = slice(len(names))  # without the count of samples that have no stratum
    return {
        "latent": np.repeat(np.arange(accumulator.latents, dtype=np.int32), len(names)),
        "stratum": pyarrow.array(np.tile(names, accumulator.latents), pyarrow.string()),
        "rows": accumulator.rows_of[:, named].reshape(-1),
        "samples": accumulator.samples_of[:, named].reshape(-1),
        "mean": _ratio(accumulator.sum_of, accumulator.rows_of)[:, named].reshape(-1),
        "max": of_strata.value[:, :, 0].reshape(-1),
        "spread": _ratio(accumulator.spread_of / WHOLE, accumulator.maps_of)[:, named].reshape(-1),
    }


def _empty_strata(labels: list[Label]) -> Columns:
    names = {"latent": "int32", "stratum": "string", "rows": "int64", "samples": "int64"}
    names |= dict.fromkeys(("mean", "max", "spread"), "float32")
    for label in labels:
        names |= {f"{label.name}.{measure}": "float32" for measure in purity.MEASURES}
        names[f"{label.name}.majority"] = "string"
    return {name: pyarrow.array([], pyarrow.type_for_alias(kind)) for name, kind in names.items()}


def _purity_columns(label: Label, sample_LM: np.ndarray, samples_L: np.ndarray, top: int) -> Columns:
    """Return the four columns of a label. The arguments are as in :func:`purity.measure`."""
    measures = purity.measure(label, sample_LM, samples_L, top)
    columns: Columns = {
        f"{label.name}.{name}": pyarrow.array(getattr(measures, name), from_pandas=True)  # NaN becomes null
        for name in purity.MEASURES
    }
    number = pyarrow.array(measures.majority, mask=measures.majority < 0)
    columns[f"{label.name}.majority"] = pyarrow.array(label.classes, pyarrow.string()).take(number)
    return columns


def _samples(
    accumulator: LatentAccumulator, ranked: RankedSamples, weaker: RankedSamples, of_strata: RankedSamples | None
) -> Columns:
    """Return the columns of the table of samples: for each latent, first samples by stratum, then top, then weaker."""
    latents, names = accumulator.latents, accumulator.strata.names
    kinds = pyarrow.array(["stratum", "top", "weaker"])
    blocks = [
        (1, -1, ranked),
        (2, -1, weaker),
    ]
    if of_strata is not None:
        each = (RankedSamples(*(array[:, i] for array in of_strata)) for i in range(len(names)))
        blocks = [(0, i, samples) for i, samples in enumerate(each)] + blocks
    value, sample, position, timestep = (
        np.concatenate([getattr(samples, field) for _, _, samples in blocks], axis=1) for field in RankedSamples._fields
    )
    used = sample >= 0
    width = [samples.sample.shape[1] for _, _, samples in blocks]
    kind = np.repeat([kind for kind, _, _ in blocks], width)
    stratum = np.repeat([stratum for _, stratum, _ in blocks], width)
    rank = np.concatenate([np.arange(n) for n in width])
    latent = np.repeat(np.arange(latents, dtype=np.int32), used.sum(1))

    def for_each_sample(column: np.ndarray) -> np.ndarray:
        return np.broadcast_to(column, used.shape)[used]

    stratum = for_each_sample(stratum)
    return {
        "latent": latent,
        "sample": sample[used],
        "kind": kinds.take(pyarrow.array(for_each_sample(kind))),
        "stratum": pyarrow.array(names, pyarrow.string()).take(pyarrow.array(stratum, mask=stratum < 0)),
        "rank": for_each_sample(rank.astype(np.int32)),
        "position": position[used],
        "timestep": timestep[used],
        "value": value[used],
        "quantile": _quantile(accumulator, ranked.value[:, 0], latent, value[used]),
    }


def _quantile(
    accumulator: LatentAccumulator, max_F: np.ndarray, latent_N: np.ndarray, value_N: np.ndarray
) -> np.ndarray:
    """Return the quantile of each value: the share of the latent's firing rows with at most that value, float32.

    The result is exact up to the width of a bin. Within a bin, values are assumed to be uniform in log2, up to the
    largest value of the latent.
    """
    bin_N = accumulator.bins(value_N)
    through_FB = np.cumsum(accumulator.histogram, axis=1)
    here_N = accumulator.histogram[latent_N, bin_N]
    low_N = accumulator.edges[bin_N]
    with np.errstate(divide="ignore"):
        max_F = np.log2(max_F.astype(np.float64))
    high_N = np.minimum(accumulator.edges[bin_N + 1], max_F[latent_N])
    high_N = np.where(bin_N == BINS - 1, max_F[latent_N], high_N)
    within_N = np.ones(len(value_N))
    np.divide(np.log2(value_N.astype(np.float64)) - low_N, high_N - low_N, out=within_N, where=high_N > low_N)
    below_N = through_FB[latent_N, bin_N] - here_N
    share_N = (below_N + np.clip(within_N, 0, 1) * here_N) / np.maximum(through_FB[latent_N, -1], 1)
    return share_N.astype(np.float32)


def _weaker(accumulator: LatentAccumulator, ranked: RankedSamples) -> RankedSamples:
    """Return samples from the bins that are nearest to evenly spaced quantiles, strongest first.

    Top samples are excluded. A latent has fewer samples if fewer of its bins have one.
    """
    blocks = [
        _weaker_of_block(accumulator, slice(start, start + BLOCK), ranked.sample[start : start + BLOCK])
        for start in range(0, accumulator.latents, BLOCK)
    ]
    return RankedSamples(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def _weaker_of_block(accumulator: LatentAccumulator, some: slice, top_FM: np.ndarray) -> RankedSamples:
    key = accumulator.weak_key[some]
    sample = (key & np.uint64(0xFFFFFFFF)).astype(np.int64)
    free = key != np.uint64(2**64 - 1)
    for rank in range(top_FM.shape[1]):
        free &= sample != top_FM[:, rank, None]
    rows = accumulator.histogram[some]
    middle = (np.cumsum(rows, 1) - rows / 2) / np.maximum(rows.sum(1, keepdims=True), 1)
    chosen = np.zeros_like(free)
    latent = np.arange(len(free))
    for i in range(accumulator.weaker):
        target = 1 - (i + 0.5) / accumulator.weaker
        distance = np.where(free, np.abs(middle - target), np.inf)
        nearest = distance.argmin(1)
        has_free_bin = free[latent, nearest]
        chosen[latent[has_free_bin], nearest[has_free_bin]] = True
        free[latent[has_free_bin], nearest[has_free_bin]] = False
    # The chosen bins from the highest down; the rest of a row is unused.
    order = np.argsort(~chosen[:, ::-1], axis=1, kind="stable")[:, : accumulator.weaker]
    bins = chosen.shape[1] - 1 - order
    used = np.take_along_axis(chosen, bins, 1)

    def of_bins(array: np.ndarray, fill: int) -> np.ndarray:
        return np.where(used, np.take_along_axis(array, bins, 1), fill).astype(array.dtype)

    return RankedSamples(
        of_bins(accumulator.weak_value[some], 0),
        of_bins(sample.astype(np.int32), -1),
        of_bins(accumulator.weak_position[some], -1),
        of_bins(accumulator.weak_timestep[some], -1),
    )


def _words(ranked: RankedSamples, tokens: pyarrow.ListArray | None) -> list[str]:
    """Return the most frequent tokens at the peaks of each latent's top samples, separated by " · ".

    The separator is not a comma, because a comma can be a token. Without ``tokens`` all texts are "".
    """
    if tokens is None:
        return [""] * len(ranked.sample)
    offsets, flat = tokens.offsets.to_numpy(), tokens.values
    sample = np.maximum(ranked.sample, 0)
    start, stop = offsets[sample], offsets[sample + 1]
    peak = start + ranked.position
    has_position = (ranked.sample >= 0) & (ranked.position >= 0)
    is_token = has_position & (peak < stop)  # positions after the tokens are padding
    words = np.full(ranked.sample.shape, PADDING, object)
    words[is_token] = [_plain(token) for token in flat.take(pyarrow.array(peak[is_token])).to_pylist()]
    return [
        " · ".join(word for word, _ in collections.Counter(row[used]).most_common(WORDS))
        for row, used in zip(words, has_position, strict=True)
    ]


def _plain(token: str) -> str:
    """Return a token without the tokenizer's marks of the beginning and end of words."""
    return token.removesuffix("</w>").lstrip("\u2581\u0120").removeprefix("##") or token


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return (total / np.maximum(count, 1)).astype(np.float32)
