"""Groups of the held-out rows, for which quality is reported: by timestep, by kind of token and by norm."""

import itertools
import typing
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow

from revelio_jax.training import loader
from revelio_jax.training.loader import Chunk, Order
from revelio_jax.training.mixture import Mixture

KINDS = ("BOS", "content", "EOS", "padding")
NORM_CHUNKS = 32  # held-out chunks whose rows decide the deciles
MOST_TIMESTEPS = 20  # more timesteps are put into ranges of equal width
RANGES = 10


class Grouping(typing.NamedTuple):
    """A partition of rows: its name, the names of its groups, and a function from a chunk and its rows to groups.

    ``of(chunk, x_ND)`` returns the group of each row, int32 [N].
    """

    name: str
    groups: tuple[str, ...]
    of: Callable[[Chunk, np.ndarray], np.ndarray]


def groupings(mixture: Mixture, order: Order) -> list[Grouping]:
    """Return the groupings of the held-out rows: all rows, and those that the stores tell apart."""
    everything = Grouping("all", ("all",), lambda chunk, x_ND: np.zeros(len(x_ND), np.int32))
    found = [_by_timestep(mixture, order), _by_kind(mixture), _by_norm(mixture, order)]
    return [everything, *(grouping for grouping in found if grouping)]


def labeled_rows(
    mixture: Mixture, order: Order, batch_size: int, partitions: list[Grouping]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the held-out rows in batches: float32 [N, d], and the group in each partition, int32 [N, partitions]."""

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for chunk in order.held_out:
            x_ND = mixture.sites[chunk.site].read(chunk.start, chunk.stop)
            yield x_ND, np.stack([grouping.of(chunk, x_ND) for grouping in partitions], 1)

    return ((x_ND, groups_NP) for x_ND, groups_NP in loader.in_batches(parts(), batch_size))


def _by_timestep(mixture: Mixture, order: Order) -> Grouping | None:
    """Group rows by timestep, or by ranges of timesteps if there are many. Return None if all have the same."""

    def timesteps(chunk: Chunk) -> np.ndarray:
        return mixture.sites[chunk.site].read_index("timestep", chunk.start, chunk.stop)

    values = np.unique(np.concatenate([np.unique(timesteps(chunk)) for chunk in order.held_out]))
    if len(values) < 2:
        return None
    if len(values) <= MOST_TIMESTEPS:
        edges, names = values[1:], tuple(str(value) for value in values)
    else:
        edges = np.unique(np.linspace(values[0], values[-1] + 1, RANGES + 1).astype(int)[1:-1])
        bounds = [values[0], *edges, values[-1] + 1]
        names = tuple(f"{low}-{high - 1}" for low, high in itertools.pairwise(bounds))
    return Grouping("timestep", names, lambda chunk, x_ND: np.searchsorted(edges, timesteps(chunk), "right"))


def _by_kind(mixture: Mixture) -> Grouping | None:
    """Group the rows of a text encoder by the kind of their token. Return None for other hook points."""
    column = f"{mixture.name.split('.')[0]}.kinds"
    if any(column not in store.schema.names for store in mixture.stores):
        return None
    tables = [_kinds(store.table([column])[column]) for store in mixture.stores]

    def of(chunk: Chunk, x_ND: np.ndarray) -> np.ndarray:
        site, (offsets, kinds) = mixture.sites[chunk.site], tables[chunk.site]
        sample, position = (site.read_index(name, chunk.start, chunk.stop) for name in ("sample", "position"))
        at, stop = offsets[sample] + position, offsets[sample + 1]
        padding = KINDS.index("padding")
        return np.where(at < stop, kinds[np.minimum(at, len(kinds) - 1)], padding).astype(np.int32)

    return Grouping("token", KINDS, of)


def _kinds(column: pyarrow.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the offset of each sample [samples + 1], and the kinds of all tokens up to the padding."""
    lists = column.combine_chunks()
    return lists.offsets.to_numpy(), lists.values.to_numpy()


def _by_norm(mixture: Mixture, order: Order) -> Grouping:
    """Group rows by the deciles of the norm. Each group has about a tenth of the rows, because some decide for all."""
    some = order.held_out[:: -(-len(order.held_out) // NORM_CHUNKS)]
    norms = [np.linalg.norm(mixture.sites[site].read(start, stop), axis=1) for site, start, stop in some]
    edges = np.quantile(np.concatenate(norms), np.arange(1, 10) / 10)
    names = tuple(f"decile {i}" for i in range(1, 11))
    return Grouping("norm", names, lambda chunk, x_ND: np.searchsorted(edges, np.linalg.norm(x_ND, axis=1), "right"))
