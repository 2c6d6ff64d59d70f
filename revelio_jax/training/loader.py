"""Rows of the stores in an order that is a pure function of (seed, step).

The chunks that are not held out are dealt to ``lanes``; a batch is B / L rows of every lane, one lane
after another. A process reads the lanes whose rows its devices hold and no chunk besides, and the batch
of a step is the same whatever the number of processes.

A lane has a stream for every source of the mixture. A stream permutes its chunks anew in each of its
epochs. Consecutive ones form groups, which are read whole, since that is what a disk does fast, and
permuted row by row. The groups of all epochs, one after another, are endless. How many rows of a source
went before a step is arithmetic too, so a resumed run keeps no loader state.

Memory of a process that has l of the L lanes, with C = buffer_chunks or the number of streams, if that
is more: (1 + READ_AHEAD) C l / L chunks for groups, one for each of READERS, and its part of
2 + BATCHES_AHEAD batches. The size of the stores is not in it.
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import fractions
import functools
import itertools
import typing
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from revelio_jax.errors import InputError
from revelio_jax.training.mixture import Mixture, MixtureSource

READERS = 8  # threads: reading waits for the disk or the network, not for Python
READ_AHEAD = 1  # groups of a stream in memory beside the one that batches are cut from
BATCHES_AHEAD = 2  # batches that are ready before they are asked for

_HELD_OUT, _DEAL, _CHUNKS, _ROWS, _BATCH = range(5)  # what a random stream is for


class RowStream(typing.NamedTuple):
    """The rows that a run trains on, and their order."""

    mixture: Mixture
    order: "Order"


class Chunk(typing.NamedTuple):
    """Rows [start, stop) of the arrays of ``mixture.sites[site]``."""

    site: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, eq=False)
class ChunkStream:
    """The endless rows of one source in one lane. ``key`` is (lane, source)."""

    seed: int
    key: tuple[int, int]
    chunks: tuple[Chunk, ...]
    group_chunks: int

    @functools.cached_property
    def rows(self) -> int:
        """The length of an epoch."""
        return length(self.chunks)

    @functools.cached_property
    def group_rows(self) -> int:
        """At least as many as any group has."""
        longest = max(chunk.stop - chunk.start for chunk in self.chunks)
        return min(self.group_chunks, len(self.chunks)) * longest

    @functools.cached_property
    def groups(self) -> typing.Callable[[int], tuple[list[list[Chunk]], list[int]]]:
        """Of an epoch: the chunks of every group, and the row of the epoch at which each group ends."""
        return functools.lru_cache(maxsize=2)(self._groups)  # what is read, and what is logged

    def _groups(self, epoch):
        order = _random(self.seed, _CHUNKS, *self.key, epoch).permutation(len(self.chunks))
        chunks = [self.chunks[i] for i in order]
        groups = [chunks[i : i + self.group_chunks] for i in range(0, len(chunks), self.group_chunks)]
        return groups, list(itertools.accumulate(length(group) for group in groups))

    def groups_from(self, row: int) -> Iterator[tuple[list[Chunk], np.ndarray]]:
        """Groups without end, from ``row`` of the stream on: chunks, and the order of their rows [N].

        Of the first group, the order has what is left from ``row`` on.
        """
        epoch, row = divmod(row, self.rows)
        ends = self.groups(epoch)[1]
        index = bisect.bisect_right(ends, row)
        row -= ends[index - 1] if index else 0
        for following in itertools.count(epoch):
            groups = self.groups(following)[0]
            for i in range(index, len(groups)):
                places = _random(self.seed, _ROWS, *self.key, following, i).permutation(length(groups[i]))
                yield groups[i], places[row:]
                row = 0
            index = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """The order of a run's rows: ``streams[lane][source]``; the held-out chunks of every source."""

    seed: int
    batch_size: int
    shares: tuple[fractions.Fraction, ...]
    streams: tuple[tuple[ChunkStream, ...], ...]
    held_out: tuple[Chunk, ...]

    @property
    def lanes(self) -> int:
        return len(self.streams)

    @functools.cached_property
    def rows(self) -> int:
        """Training rows of all sources."""
        return sum(stream.rows for lane in self.streams for stream in lane)

    def before(self, step: int) -> list[int]:
        """Rows of each source that a lane gives in the steps before ``step``.

        They differ from share x rows by less than 1, so shares are exact in the long run.
        """
        rows = step * (self.batch_size // self.lanes)
        borders = [int(share * rows) for share in itertools.accumulate(self.shares)]  # rounded down
        return [stop - start for start, stop in itertools.pairwise([0, *borders])]

    def mixed(self, lane: int, step: int) -> np.ndarray:
        """The order in which a lane's rows of a step stand, of those of the first source first."""
        return _random(self.seed, _BATCH, lane, step).permutation(self.batch_size // self.lanes)


def make_order(
    mixture: Mixture, seed: int, batch_size: int, buffer_chunks: int, held_out: float, lanes: int = 1
) -> Order:
    """Choose held-out chunks of every store and deal the others to the lanes. Raises InputError."""
    if batch_size % lanes:
        raise InputError(f"config.data.lanes is {lanes}; it must divide config.train.batch_size {batch_size}")
    numbers, kept, dealt = itertools.count(), [], []  # dealt[source][lane]
    for source in mixture.sources:
        train = []
        for store, site in zip(source.stores, source.sites, strict=True):
            number = next(numbers)
            count = max(1, round(held_out * len(site.chunks))) if held_out else 0
            if count >= len(site.chunks):
                raise InputError(
                    f"config.data.held_out is {held_out}, but site {site.name} of {store.location} has "
                    f"{len(site.chunks)} chunks: none is left to train on; set it to 0, or extract with a "
                    "smaller config.extract.chunk_rows"
                )
            chosen = set(_random(seed, _HELD_OUT).permutation(len(site.chunks))[:count].tolist())
            for i, chunk in enumerate(site.chunks):
                (kept if i in chosen else train).append(Chunk(number, *chunk))
        shuffled = [train[i] for i in _random(seed, _DEAL, len(dealt)).permutation(len(train))]
        dealt.append([tuple(shuffled[lane::lanes]) for lane in range(lanes)])
        _check_rows(source, batch_size, dealt[-1])
    shares = tuple(source.share for source in mixture.sources)
    group_chunks = [max(1, int(share * buffer_chunks / lanes)) for share in shares]
    streams = [
        tuple(ChunkStream(seed, (lane, i), chunks[lane], group_chunks[i]) for i, chunks in enumerate(dealt))
        for lane in range(lanes)
    ]
    return Order(seed, batch_size, shares, tuple(streams), tuple(kept))


def _check_rows(source: MixtureSource, batch_size: int, dealt: Sequence[Sequence[Chunk]]) -> None:
    """Every lane gets a row of the source in every step, and none twice in one."""
    lanes = len(dealt)
    wanted = source.share * batch_size / lanes
    where = f" of {source.location} in one of {lanes} lanes" if lanes > 1 or source.share < 1 else ""
    if wanted < 1:
        raise InputError(
            f"config.train.batch_size is {batch_size}, which gives {float(wanted):.2g} rows{where}; "
            "at least 1 is needed: raise it or the weight, or use fewer config.data.lanes"
        )
    rows = min(length(chunks) for chunks in dealt)
    if rows < wanted:
        raise InputError(
            f"config.train.batch_size is {batch_size}, but site {source.sites[0].name} has {rows} rows to "
            f"train on{where}, and a batch takes {float(wanted):g}"
        )


def batches(mixture: Mixture, order: Order, step: int, lanes: Iterable[int] | None = None) -> Iterator[np.ndarray]:
    """Endless batches [B l / L, d] from ``step`` on, the rows of the l given lanes, or of all.

    They have the stores' dtype, half as many bytes as float32 where that is a short one: the device
    converts them. Nothing is read but chunks of those lanes. Close it to stop its threads.
    """
    lanes = range(order.lanes) if lanes is None else tuple(lanes)
    lane_rows = order.batch_size // order.lanes
    readers = concurrent.futures.ThreadPoolExecutor(READERS)
    assembler = concurrent.futures.ThreadPoolExecutor(1)
    shuffled = [
        [
            _Shuffled(mixture, stream, row, readers)
            for stream, row in zip(order.streams[lane], order.before(step), strict=True)
        ]
        for lane in lanes
    ]

    def assemble(step):
        counts = np.subtract(order.before(step + 1), order.before(step))
        batch = np.empty((len(lanes) * lane_rows, mixture.d), mixture.dtype)
        for i, lane in enumerate(lanes):
            rows = batch[i * lane_rows : (i + 1) * lane_rows]
            for source, part in zip(shuffled[i], np.split(rows, np.cumsum(counts)[:-1]), strict=True):
                source.take(part)
            if len(counts) > 1:
                rows[:] = rows[order.mixed(lane, step)]
        return batch

    try:
        ready = collections.deque()
        for following in itertools.count(step):
            ready.append(assembler.submit(assemble, following))
            if len(ready) > BATCHES_AHEAD:
                yield ready.popleft().result()
    finally:
        readers.shutdown(wait=False, cancel_futures=True)  # what the assembler waits for
        assembler.shutdown(cancel_futures=True)
        readers.shutdown()


def rows_of(order: Order, step: int) -> np.ndarray:
    """Number of the site, and array row in it, of every row of a batch, in its order: int64 [2, B]."""
    lanes = []
    for lane, streams in enumerate(order.streams):
        parts = []
        for stream, row, end in zip(streams, order.before(step), order.before(step + 1), strict=True):
            groups = stream.groups_from(row)
            while row < end:
                chunks, places = next(groups)
                numbers = [(np.full(stop - start, site), np.arange(start, stop)) for site, start, stop in chunks]
                parts.append(np.concatenate(numbers, 1)[:, places[: end - row]])
                row += len(places)
        rows = np.concatenate(parts, 1)
        lanes.append(rows[:, order.mixed(lane, step)] if len(streams) > 1 else rows)
    return np.concatenate(lanes, 1)


class _Shuffled:
    """The rows of a stream from ``row`` on. Groups are read into memory that is used again and again."""

    def __init__(self, mixture: Mixture, stream: ChunkStream, row: int, readers: concurrent.futures.Executor):
        self._sites, self._readers = mixture.sites, readers
        self._groups = stream.groups_from(row)
        self._ahead = collections.deque()
        for _ in range(1 + READ_AHEAD):
            self._begin(np.empty((stream.group_rows, mixture.d), mixture.dtype))
        self._next_group()

    def take(self, rows: np.ndarray) -> None:
        """Fill rows [N, d]."""
        while len(rows):
            if not len(self._places):
                self._begin(self._memory)
                self._next_group()
            for reading in self._reading:  # futures.wait() would never return if they are cancelled
                reading.result()
            self._reading = ()
            part, self._places = self._places[: len(rows)], self._places[len(rows) :]
            # mode: the default checks indices first and so copies twice.
            np.take(self._memory, part, axis=0, out=rows[: len(part)], mode="clip")
            rows = rows[len(part) :]

    def _begin(self, memory):
        chunks, places = next(self._groups)
        ends = itertools.accumulate(chunk.stop - chunk.start for chunk in chunks)
        reading = [
            self._readers.submit(
                self._sites[chunk.site].read_into, chunk.start, memory[end - chunk.stop + chunk.start : end]
            )
            for chunk, end in zip(chunks, ends, strict=True)
        ]
        self._ahead.append((memory, places, reading))

    def _next_group(self):
        self._memory, self._places, self._reading = self._ahead.popleft()


def held_out_rows(mixture: Mixture, order: Order, batch_size: int) -> Iterator[np.ndarray]:
    """The held-out rows of every store in their order in it, float32 batches; the last may be shorter."""
    left = np.empty((0, mixture.d), np.float32)
    for site, start, stop in order.held_out:
        left = np.concatenate([left, mixture.sites[site].read(start, stop)])
        while len(left) >= batch_size:
            yield left[:batch_size]
            left = left[batch_size:]
    if len(left):
        yield left


def first_rows(mixture: Mixture, order: Order, count: int) -> np.ndarray:
    """The first rows that training sees, of all lanes, at most ``count`` and an epoch: [N, d] float32."""
    count = min(count, order.rows)
    stream = batches(mixture, order, 0)
    taken = list(itertools.islice(stream, -(-count // order.batch_size)))
    stream.close()
    return np.concatenate(taken)[:count].astype(np.float32)


def length(chunks: Iterable[Chunk]) -> int:
    """Rows of the chunks."""
    return sum(chunk.stop - chunk.start for chunk in chunks)


def _random(seed: int, *stream: int) -> np.random.Generator:
    """The generator of one purpose, lane, epoch and so on: independent of all others, the same anywhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))
