"""Rows of a store in an order that is a pure function of (seed, step).

Chunks that are not held out are permuted anew in every epoch. Consecutive ones form groups of
``buffer_chunks``, which are read whole, since that is what a disk does fast, and permuted row by row.
The groups of all epochs, one after another, are one endless stream; step s takes its rows
[s B, (s + 1) B). So where a step's rows lie is arithmetic, and a resumed run keeps no loader state.
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np

from revelio_jax.errors import InputError
from revelio_jax.store import Site

READERS = 8  # threads: reading waits for the disk or the network, not for Python
READ_AHEAD = 1  # groups in memory beside the one that batches are cut from

_HELD_OUT, _CHUNKS, _ROWS = range(3)  # what a random stream is for


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of a run's rows. ``train`` and ``held_out`` are chunks as (start, stop) array rows."""

    seed: int
    batch_size: int
    buffer_chunks: int
    train: tuple[tuple[int, int], ...]
    held_out: tuple[tuple[int, int], ...]

    @functools.cached_property
    def rows(self) -> int:
        """Training rows, the length of an epoch."""
        return sum(stop - start for start, stop in self.train)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - an order lives as long as its run
    def groups(self, epoch: int) -> tuple[list[list[tuple[int, int]]], list[int]]:
        """The chunks of every group of an epoch, and the row of the epoch at which each group ends."""
        chunks = [self.train[i] for i in _random(self.seed, _CHUNKS, epoch).permutation(len(self.train))]
        groups = [chunks[i : i + self.buffer_chunks] for i in range(0, len(chunks), self.buffer_chunks)]
        return groups, list(itertools.accumulate(_length(group) for group in groups))

    def group(self, epoch: int, index: int) -> tuple[list[tuple[int, int]], np.ndarray]:
        """The chunks of a group, and for each of their rows its place in the group's shuffled rows."""
        chunks = self.groups(epoch)[0][index]
        return chunks, _random(self.seed, _ROWS, epoch, index).permutation(_length(chunks))

    def position(self, step: int) -> tuple[int, int, int]:
        """Where a step's first row lies: epoch, group, row within the group."""
        epoch, row = divmod(step * self.batch_size, self.rows)
        ends = self.groups(epoch)[1]
        index = bisect.bisect_right(ends, row)
        return epoch, index, row - (ends[index - 1] if index else 0)


def make_order(site: Site, seed: int, batch_size: int, buffer_chunks: int, held_out: float) -> Order:
    """Choose the held-out chunks and check that the rest fills a batch. Raises InputError."""
    chunks = site.chunks
    count = max(1, round(held_out * len(chunks))) if held_out else 0
    if count >= len(chunks):
        raise InputError(
            f"config.train.held_out is {held_out}, but site {site.name} has {len(chunks)} chunks: "
            "none is left to train on; set it to 0, or extract with a smaller config.extract.chunk_rows"
        )
    chosen = set(_random(seed, _HELD_OUT).permutation(len(chunks))[:count].tolist())
    order = Order(
        seed=seed,
        batch_size=batch_size,
        buffer_chunks=buffer_chunks,
        train=tuple(chunk for i, chunk in enumerate(chunks) if i not in chosen),
        held_out=tuple(chunk for i, chunk in enumerate(chunks) if i in chosen),
    )
    if order.rows < batch_size:
        raise InputError(
            f"config.train.batch_size is {batch_size}, but site {site.name} has {order.rows} rows to train on"
        )
    return order


def batches(site: Site, order: Order, step: int) -> Iterator[np.ndarray]:
    """Endless batches [B, d] float32 from ``step`` on. Close it to stop its threads."""
    epoch, index, row = order.position(step)
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        groups = _groups(site, order, epoch, index, readers)
        yield from _cut(itertools.chain([next(groups)[row:]], groups), order.batch_size)


def rows_of(order: Order, step: int) -> np.ndarray:
    """Array rows of the batch that :func:`batches` gives for ``step``, in its order: int64 [B]."""
    epoch, index, row = order.position(step)
    groups = (_array_rows(*order.group(*place)) for place in _places(order, epoch, index))
    return next(_cut(itertools.chain([next(groups)[row:]], groups), order.batch_size))


def held_out_rows(site: Site, order: Order, batch_size: int) -> Iterator[np.ndarray]:
    """The held-out rows in their order in the store, as batches; the last may be shorter."""
    yield from _cut((site.read(*chunk) for chunk in order.held_out), batch_size)


def first_rows(site: Site, order: Order, count: int) -> np.ndarray:
    """The first rows that training sees, at most ``count`` and at most an epoch: [N, d] float32."""
    count = min(count, order.rows)
    stream = batches(site, order, 0)
    taken = list(itertools.islice(stream, -(-count // order.batch_size)))
    stream.close()
    return np.concatenate(taken)[:count]


def _groups(site, order, epoch, index, readers):
    """Shuffled rows of one group after another; READ_AHEAD of them are being read meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1) as ahead:
        reading = collections.deque()
        for place in _places(order, epoch, index):
            reading.append(ahead.submit(_read_group, site, *order.group(*place), readers))
            if len(reading) > READ_AHEAD:
                yield reading.popleft().result()


def _places(order, epoch, index):
    """(epoch, group) of one group after another, without end."""
    return (
        (e, i) for e in itertools.count(epoch) for i in range(index * (e == epoch), len(order.groups(e)[0]))
    )


def _array_rows(chunks, places):
    """The numbers of the rows that :func:`_read_group` reads, each at its place."""
    rows = np.empty(len(places), np.int64)
    rows[places] = np.concatenate([np.arange(*chunk) for chunk in chunks])
    return rows


def _read_group(site, chunks, places, readers):
    """The rows of ``chunks``, each written to its place."""
    rows = np.empty((len(places), site.d), np.float32)
    starts = itertools.accumulate((stop - start for start, stop in chunks), initial=0)

    def read(chunk, start):
        values = site.read(*chunk)
        rows[places[start : start + len(values)]] = values

    list(readers.map(read, chunks, itertools.islice(starts, len(chunks))))
    return rows


def _cut(arrays, batch_size):
    """Rows of arrays, one after another, in batches across their borders."""
    parts, have = [], 0
    for rows in arrays:
        while have + len(rows) >= batch_size:
            end = batch_size - have
            yield np.concatenate([*parts, rows[:end]])
            rows, parts, have = rows[end:], [], 0
        parts.append(rows.copy())
        have += len(rows)
        del rows  # a view of a whole group, which is freed before the next is waited for
    if have:
        yield np.concatenate(parts)


def _length(chunks):
    return sum(stop - start for start, stop in chunks)


def _random(seed: int, *stream: int) -> np.random.Generator:
    """The generator of one purpose, epoch and group: independent of all others, the same anywhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))
