"""The tables and arrays of results.py, from what was collected."""

import collections
import dataclasses
import typing

import numpy as np
import pyarrow

from revelio_jax.interpret.latents import purity
from revelio_jax.interpret.latents.collection import BINS, WHOLE, Collection
from revelio_jax.interpret.latents.purity import Label
from revelio_jax.interpret.latents.top_samples import Ranked

WORDS = 5  # tokens that are told of a latent, at most
PADDING = "[padding]"
BLOCK = 4096  # latents whose weaker samples are chosen together


class Entries(typing.NamedTuple):
    """Samples of every latent: arrays [F, M], sample -1 where there is none."""

    value: np.ndarray
    sample: np.ndarray
    position: np.ndarray
    timestep: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    tables: dict[str, pyarrow.Table]
    arrays: dict[str, np.ndarray]


def make(
    collection: Collection, labels: list[Label], tokens: pyarrow.Array | None, top: int, neighbours: dict
) -> Tables:
    """Everything; ``tokens`` are those of the samples, lists of strings, ``neighbours`` their arrays."""
    strata = collection.strata.names
    ranked, of_strata, profiles = collection.ranked()
    weaker = _weaker(collection, ranked)
    shape = (collection.latents, collection.strata.kept, top)
    of_strata = Ranked(*(array.reshape(shape)[:, : len(strata)] for array in of_strata)) if strata else None

    latents = _latents(collection, ranked)
    latents["words"] = _words(ranked, tokens)
    tables = {"latents": latents}
    if strata:
        tables["strata"] = _strata(collection, of_strata)
    for label in labels:
        tables["latents"] |= _columns(label, ranked.sample, collection.samples, top)
        if strata:
            sample = of_strata.sample.reshape(-1, top)
            fires_on = collection.samples_of[:, : len(strata)].reshape(-1)
            tables["strata"] |= _columns(label, sample, fires_on, top)
    if not strata:
        tables["strata"] = _no_strata(labels)
    tables["samples"] = _samples(collection, ranked, weaker, of_strata)
    arrays = {
        "histogram": collection.histogram,
        "profile": profiles,
        "drawn": collection.drawn.astype(np.int32),
        "fires": collection.fires,
        **neighbours,
    }
    return Tables({name: pyarrow.table(columns) for name, columns in tables.items()}, arrays)


def _latents(collection: Collection, ranked: Ranked) -> dict[str, typing.Any]:
    rows, maps = collection.rows_of.sum(1), collection.maps_of.sum(1)
    return {
        "latent": np.arange(collection.latents, dtype=np.int32),
        "rows": rows,
        "samples": collection.samples,
        "frequency": rows / max(collection.rows, 1),
        "mean": _over(collection.sum_of.sum(1), rows),
        "max": ranked.value[:, 0],
        "spread": _over(collection.spread_of.sum(1) / WHOLE, maps),
    }


def _strata(collection: Collection, of_strata: Ranked) -> dict[str, typing.Any]:
    """A row a latent and stratum, in that order."""
    names = collection.strata.names
    some = slice(len(names))
    return {
        "latent": np.repeat(np.arange(collection.latents, dtype=np.int32), len(names)),
        "stratum": pyarrow.array(np.tile(names, collection.latents), pyarrow.string()),
        "rows": collection.rows_of[:, some].reshape(-1),
        "samples": collection.samples_of[:, some].reshape(-1),
        "mean": _over(collection.sum_of, collection.rows_of)[:, some].reshape(-1),
        "max": of_strata.value[:, :, 0].reshape(-1),
        "spread": _over(collection.spread_of / WHOLE, collection.maps_of)[:, some].reshape(-1),
    }


def _no_strata(labels: list[Label]) -> dict[str, typing.Any]:
    names = {"latent": "int32", "stratum": "string", "rows": "int64", "samples": "int64"}
    names |= dict.fromkeys(("mean", "max", "spread"), "float32")
    for label in labels:
        names |= {f"{label.name}.{measure}": "float32" for measure in purity.MEASURES}
        names[f"{label.name}.majority"] = "string"
    return {name: pyarrow.array([], pyarrow.type_for_alias(kind)) for name, kind in names.items()}


def _columns(label: Label, sample_LM: np.ndarray, samples_L: np.ndarray, top: int) -> dict[str, typing.Any]:
    measured = purity.measure(label, sample_LM, samples_L, top)
    columns: dict[str, typing.Any] = {
        f"{label.name}.{name}": pyarrow.array(values, from_pandas=True)  # NaN becomes null
        for name, values in zip(purity.MEASURES, measured, strict=False)
    }
    number = pyarrow.array(measured.majority, mask=measured.majority < 0)
    columns[f"{label.name}.majority"] = pyarrow.array(label.classes, pyarrow.string()).take(number)
    return columns


def _samples(
    collection: Collection, ranked: Ranked, weaker: Entries, of_strata: Ranked | None
) -> dict[str, typing.Any]:
    """The rows of all kinds: of each latent its strata, then top, then weaker."""
    latents, names = collection.latents, collection.strata.names
    kinds = pyarrow.array(["stratum", "top", "weaker"])
    blocks = [
        (1, -1, ranked),
        (2, -1, weaker),
    ]
    if of_strata is not None:
        each = (Entries(*(array[:, i] for array in of_strata)) for i in range(len(names)))
        blocks = [(0, i, entries) for i, entries in enumerate(each)] + blocks
    value, sample, position, timestep = (
        np.concatenate([getattr(entries, field) for _, _, entries in blocks], axis=1) for field in Entries._fields
    )
    there = sample >= 0
    width = [entries.sample.shape[1] for _, _, entries in blocks]
    kind, stratum = (np.repeat([block[i] for block in blocks], width) for i in range(2))
    rank = np.concatenate([np.arange(n) for n in width])
    latent = np.repeat(np.arange(latents, dtype=np.int32), there.sum(1))

    def spread_out(column):
        return np.broadcast_to(column, there.shape)[there]

    stratum = spread_out(stratum)
    return {
        "latent": latent,
        "sample": sample[there],
        "kind": kinds.take(pyarrow.array(spread_out(kind))),
        "stratum": pyarrow.array(names, pyarrow.string()).take(pyarrow.array(stratum, mask=stratum < 0)),
        "rank": spread_out(rank.astype(np.int32)),
        "position": position[there],
        "timestep": timestep[there],
        "value": value[there],
        "quantile": _quantile(collection, ranked.value[:, 0], latent, value[there]),
    }


def _quantile(collection: Collection, max_F: np.ndarray, latent_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    """The share of the rows where a latent fires whose value is not larger, float32; exact to its bin.

    Within a bin values are taken to be spread evenly in log2, up to the latent's largest.
    """
    bin_N = collection.bins(value_N)
    through_FB = np.cumsum(collection.histogram, axis=1)
    here_N = collection.histogram[latent_N, bin_N]
    low_N = collection.edges[bin_N]
    with np.errstate(divide="ignore"):
        max_F = np.log2(max_F.astype(np.float64))
    high_N = np.minimum(collection.edges[bin_N + 1], max_F[latent_N])
    high_N = np.where(bin_N == BINS - 1, max_F[latent_N], high_N)
    within_N = np.ones(len(value_N))
    np.divide(np.log2(value_N.astype(np.float64)) - low_N, high_N - low_N, out=within_N, where=high_N > low_N)
    below_N = through_FB[latent_N, bin_N] - here_N
    share_N = (below_N + np.clip(within_N, 0, 1) * here_N) / np.maximum(through_FB[latent_N, -1], 1)
    return share_N.astype(np.float32)


def _weaker(collection: Collection, ranked: Ranked) -> Entries:
    """Of the samples that were drawn from bins those nearest to evenly spaced quantiles, strongest first.

    None is among the strongest; there are fewer where fewer bins have a sample.
    """
    parts = [
        _weaker_of(collection, slice(start, start + BLOCK), ranked.sample[start : start + BLOCK])
        for start in range(0, collection.latents, BLOCK)
    ]
    return Entries(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _weaker_of(collection: Collection, some: slice, top_FM: np.ndarray) -> Entries:
    key = collection.weak_key[some]
    sample = (key & np.uint64(0xFFFFFFFF)).astype(np.int64)
    free = key != np.uint64(2**64 - 1)
    for rank in range(top_FM.shape[1]):
        free &= sample != top_FM[:, rank, None]
    rows = collection.histogram[some]
    middle = (np.cumsum(rows, 1) - rows / 2) / np.maximum(rows.sum(1, keepdims=True), 1)
    chosen = np.zeros_like(free)
    latent = np.arange(len(free))
    for i in range(collection.weaker):
        target = 1 - (i + 0.5) / collection.weaker
        distance = np.where(free, np.abs(middle - target), np.inf)
        nearest = distance.argmin(1)
        found = free[latent, nearest]
        chosen[latent[found], nearest[found]] = True
        free[latent[found], nearest[found]] = False
    # The chosen bins from the highest down, and then -1.
    order = np.argsort(~chosen[:, ::-1], axis=1, kind="stable")[:, : collection.weaker]
    bins = chosen.shape[1] - 1 - order
    there = np.take_along_axis(chosen, bins, 1)

    def of(array, fill):
        return np.where(there, np.take_along_axis(array, bins, 1), fill).astype(array.dtype)

    return Entries(
        of(collection.weak_value[some], 0),
        of(sample.astype(np.int32), -1),
        of(collection.weak_position[some], -1),
        of(collection.weak_timestep[some], -1),
    )


def _words(ranked: Ranked, tokens: pyarrow.Array | None) -> list[str]:
    """The tokens at which each latent is strongest, the most frequent first; "" without tokens.

    A comma is a token itself, so it cannot stand between them.
    """
    if tokens is None:
        return [""] * len(ranked.sample)
    offsets, flat = tokens.offsets.to_numpy(), tokens.values
    sample = np.maximum(ranked.sample, 0)
    start, stop = offsets[sample], offsets[sample + 1]
    at = start + ranked.position
    shown = (ranked.sample >= 0) & (ranked.position >= 0)
    inside = shown & (at < stop)  # what comes after the tokens is padding
    found = flat.take(pyarrow.array(at[inside])).to_pylist()
    words = np.full(ranked.sample.shape, PADDING, object)
    words[inside] = [_plain(token) for token in found]
    return [
        " · ".join(word for word, _ in collections.Counter(row[kept]).most_common(WORDS))
        for row, kept in zip(words, shown, strict=True)
    ]


def _plain(token: str) -> str:
    """A token without a tokenizer's marks of where words begin and end."""
    return token.removesuffix("</w>").lstrip("\u2581\u0120").removeprefix("##") or token


def _over(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return (total / np.maximum(count, 1)).astype(np.float32)
