"""Read the rows of the stores in an order that is a pure function of (seed, step).

Training chunks are distributed over L lanes. A batch of B rows has B / L rows of each lane, in the order of the lanes.
A process reads only the chunks of the lanes whose rows its devices hold. The batch of a step does not depend on
the number of processes.

A lane has one stream for each source of the mixture. Each epoch of a stream permutes its chunks. Consecutive chunks
form groups. A group is read as a whole, because disks read contiguous data fast, and its rows are then permuted. A
stream is the endless sequence of the groups of all epochs. The number of rows before a step is computed, so a resumed
run needs no loader state.

A process with l of the L lanes holds (1 + READ_AHEAD) C l / L chunks for groups, one chunk for each of READERS, and
its part of 2 + BATCHES_AHEAD batches. C is buffer_chunks or the number of streams, whichever is larger. Memory does
not depend on the size of the stores. It grows only if a reader holds more batches at a time.
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import fractions
import functools
import itertools
import threading
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np

from revelio_jax.errors import InputError
from revelio_jax.training import shuffled_rows
from revelio_jax.training.mixture import Mixture, MixtureSource
from revelio_jax.training.shuffled_rows import Buffers, ShuffledRows

BATCHES_AHEAD = 2  # batches that are assembled or on the devices, in addition to the current one

_HELD_OUT, _DEAL, _CHUNKS, _ROWS, _BATCH, LIVE_HELD_OUT, LIVE_SHARDS, LIVE_CHUNKS = range(8)  # purposes of generators


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
    """The endless sequence of the rows of one source in one lane. ``key`` is (lane, source)."""

    seed: int
    key: tuple[int, int]
    chunks: tuple[Chunk, ...]
    group_chunks: int

    @functools.cached_property
    def rows(self) -> int:
        """The number of rows in an epoch."""
        return length(self.chunks)

    @functools.cached_property
    def group_rows(self) -> int:
        """An upper bound of the rows in a group."""
        longest = max(chunk.stop - chunk.start for chunk in self.chunks)
        return min(self.group_chunks, len(self.chunks)) * longest

    @functools.cached_property
    def groups(self) -> Callable[[int], tuple[list[list[Chunk]], list[int]]]:
        """A function from an epoch to the chunks of each group and the row at which each group ends."""
        return functools.lru_cache(maxsize=2)(self._groups)  # one entry for reading, one for logging

    def _groups(self, epoch: int) -> tuple[list[list[Chunk]], list[int]]:
        order = random_generator(self.seed, _CHUNKS, *self.key, epoch).permutation(len(self.chunks))
        chunks = [self.chunks[i] for i in order]
        groups = [chunks[i : i + self.group_chunks] for i in range(0, len(chunks), self.group_chunks)]
        return groups, list(itertools.accumulate(length(group) for group in groups))

    def groups_from(self, row: int) -> Iterator[tuple[list[Chunk], np.ndarray]]:
        """Yield the groups of the stream starting at ``row``: their chunks and the order of their rows [N].

        The order of the first group leaves out its rows before ``row``.
        """
        epoch, row = divmod(row, self.rows)
        ends = self.groups(epoch)[1]
        index = bisect.bisect_right(ends, row)
        row -= ends[index - 1] if index else 0
        for current in itertools.count(epoch):
            groups = self.groups(current)[0]
            for i in range(index, len(groups)):
                places = random_generator(self.seed, _ROWS, *self.key, current, i).permutation(length(groups[i]))
                yield groups[i], places[row:]
                row = 0
            index = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """The order of the rows of a run: ``streams[lane][source]``, and the held-out chunks of all sources."""

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
        """The number of training rows of all sources."""
        return sum(stream.rows for lane in self.streams for stream in lane)

    def rows_before(self, step: int) -> list[int]:
        """Return the number of rows of each source that one lane reads in the steps before ``step``.

        Each number differs from share x rows by less than 1, so shares are exact in the long run.
        """
        rows = step * (self.batch_size // self.lanes)
        borders = [int(share * rows) for share in itertools.accumulate(self.shares)]  # rounded down
        return [stop - start for start, stop in itertools.pairwise([0, *borders])]

    def batch_groups(self, lane: int, step: int) -> Iterator[tuple[list[Chunk], np.ndarray]]:
        """Yield the groups that a lane reads for the batch after ``step`` steps, source by source.

        A group is given by its chunks and by the places in them of the rows of the batch, in order.
        """
        for stream, row, end in zip(
            self.streams[lane], self.rows_before(step), self.rows_before(step + 1), strict=True
        ):
            groups = stream.groups_from(row)
            while row < end:
                chunks, places = next(groups)
                yield chunks, places[: end - row]
                row += len(places)

    def permutation(self, lane: int, step: int) -> np.ndarray:
        """Return the permutation that mixes the rows of all sources in a lane's part of a batch."""
        return random_generator(self.seed, _BATCH, lane, step).permutation(self.batch_size // self.lanes)


def make_order(
    mixture: Mixture, seed: int, batch_size: int, buffer_chunks: int, held_out: float, lanes: int = 1
) -> Order:
    """Choose held-out chunks of every store and distribute the others over the lanes.

    Raise InputError if lanes do not divide the batch, or if a store has too few chunks or rows.
    """
    if batch_size % lanes:
        raise InputError(f"config.data.lanes is {lanes}; it must divide config.train.batch_size {batch_size}")
    numbers = itertools.count()
    held_out_chunks: list[Chunk] = []
    lane_chunks: list[list[tuple[Chunk, ...]]] = []  # by source and lane
    for source in mixture.sources:
        train: list[Chunk] = []
        for store, site in zip(source.stores, source.sites, strict=True):
            number = next(numbers)
            count = max(1, round(held_out * len(site.chunks))) if held_out else 0
            if count >= len(site.chunks):
                raise InputError(
                    f"config.data.held_out is {held_out}, but site {site.name} of {store.location} has "
                    f"{len(site.chunks)} chunks, so no chunk is left for training; set it to 0, or extract with a "
                    "smaller config.extract.chunk_rows"
                )
            held_out_here = set(random_generator(seed, _HELD_OUT).permutation(len(site.chunks))[:count].tolist())
            for i, (start, stop) in enumerate(site.chunks):
                (held_out_chunks if i in held_out_here else train).append(Chunk(number, start, stop))
        shuffled = [train[i] for i in random_generator(seed, _DEAL, len(lane_chunks)).permutation(len(train))]
        lane_chunks.append([tuple(shuffled[lane::lanes]) for lane in range(lanes)])
        _check_rows(source, batch_size, lane_chunks[-1])
    shares = tuple(source.share for source in mixture.sources)
    group_chunks = [max(1, int(share * buffer_chunks / lanes)) for share in shares]
    streams = [
        tuple(ChunkStream(seed, (lane, i), chunks[lane], group_chunks[i]) for i, chunks in enumerate(lane_chunks))
        for lane in range(lanes)
    ]
    return Order(seed, batch_size, shares, tuple(streams), tuple(held_out_chunks))


def _check_rows(source: MixtureSource, batch_size: int, lane_chunks: Sequence[Sequence[Chunk]]) -> None:
    """Raise InputError if some step has no row of the source in a lane, or the same row twice."""
    lanes = len(lane_chunks)
    needed = source.share * batch_size / lanes
    where = f" of {source.location} in one of {lanes} lanes" if lanes > 1 or source.share < 1 else ""
    if needed < 1:
        raise InputError(
            f"config.train.batch_size is {batch_size}, which gives {float(needed):.2g} rows{where}; "
            "at least 1 is needed: increase batch_size or the weight, or use fewer config.data.lanes"
        )
    rows = min(length(chunks) for chunks in lane_chunks)
    if rows < needed:
        raise InputError(
            f"config.train.batch_size is {batch_size}, but site {source.sites[0].name} has {rows} rows to "
            f"train on{where}, and a batch needs {float(needed):g}"
        )


def batches(
    mixture: Mixture,
    order: Order,
    step: int,
    lanes: Iterable[int] | None = None,
    put: Callable[[np.ndarray], typing.Any] = lambda x_BD: x_BD,
) -> Generator[typing.Any, None, None]:
    """Yield batches [B l / L, d] without end, starting at ``step``: the rows of l ``lanes``, by default all lanes.

    Batches have the dtype of the stores; the device converts them, which moves fewer bytes for 16-bit dtypes.
    Only chunks of ``lanes`` are read. A batch is yielded as ``put(batch)``, which a thread calls BATCHES_AHEAD batches
    ahead, so that transfers to the devices overlap with steps. Close the generator to stop its threads.
    """
    lanes = range(order.lanes) if lanes is None else tuple(lanes)
    lane_rows = order.batch_size // order.lanes
    mixture.start_reading()
    readers, stopped = concurrent.futures.ThreadPoolExecutor(shuffled_rows.THREADS), threading.Event()
    assembler = concurrent.futures.ThreadPoolExecutor(1)
    shuffled = [
        [
            ShuffledRows(
                mixture.sites,
                stream.groups_from(row),
                Buffers(stream.group_rows, mixture.d, mixture.dtype),
                readers,
                stopped,
            )
            for stream, row in zip(order.streams[lane], order.rows_before(step), strict=True)
        ]
        for lane in lanes
    ]
    buffers = Buffers(len(lanes) * lane_rows, mixture.d, mixture.dtype)
    # A view keeps the memory of its group, so groups must be longer than the batches that are in use at a time.
    in_use = (2 + BATCHES_AHEAD) * lane_rows
    can_be_view = len(lanes) == len(shuffled[0]) == 1 and order.streams[lanes[0]][0].group_rows >= in_use

    def assemble(step: int) -> typing.Any:
        counts = np.subtract(order.rows_before(step + 1), order.rows_before(step)).tolist()
        views = [[source.take(n) for source, n in zip(sources, counts, strict=True)] for sources in shuffled]
        if can_be_view and len(views[0][0]) == 1:
            return put(views[0][0][0])
        batch = buffers.take()
        for lane, parts, rows in zip(lanes, views, np.split(batch, len(lanes)), strict=True):
            targets = np.argsort(order.permutation(lane, step)) if len(counts) > 1 else None
            start = 0
            for view in itertools.chain(*parts):
                stop = start + len(view)
                if targets is None:
                    rows[start:stop] = view
                else:
                    shuffled_rows.scatter(view, targets[start:stop], rows)
                start = stop
        return put(batch)

    try:
        ready: collections.deque[concurrent.futures.Future[typing.Any]] = collections.deque()
        for current in itertools.count(step):
            ready.append(assembler.submit(assemble, current))
            if len(ready) > BATCHES_AHEAD:
                yield ready.popleft().result()
    finally:
        mixture.stop_reading()  # otherwise a thread may wait for rows that are not extracted
        stopped.set()
        readers.shutdown(wait=False, cancel_futures=True)  # the assembler waits for these
        assembler.shutdown(cancel_futures=True)
        readers.shutdown()


def row_numbers(
    order: Order, step: int, number: Callable[[Chunk], np.ndarray], lanes: Iterable[int] | None = None
) -> Iterator[np.ndarray]:
    """Yield numbers for the rows of :func:`batches`, in the same order: integers [..., B l / L].

    ``number`` returns an integer array [..., N] for the N rows of a chunk.
    """
    lanes = range(order.lanes) if lanes is None else tuple(lanes)
    numbers = [
        [
            _RowNumbers(stream, row, number)
            for stream, row in zip(order.streams[lane], order.rows_before(step), strict=True)
        ]
        for lane in lanes
    ]
    for current in itertools.count(step):
        counts = np.subtract(order.rows_before(current + 1), order.rows_before(current)).tolist()
        parts: list[np.ndarray] = []
        for lane, sources in zip(lanes, numbers, strict=True):
            part = np.concatenate([source.take(n) for source, n in zip(sources, counts, strict=True)], -1)
            parts.append(part[..., order.permutation(lane, current)] if len(counts) > 1 else part)
        yield np.concatenate(parts, -1)


def rows_of(order: Order, step: int) -> np.ndarray:
    """Return the index of the site and the row in its arrays for each row of a batch, in order: int64 [2, B]."""

    def number(chunk: Chunk) -> np.ndarray:
        rows = np.arange(chunk.start, chunk.stop)
        return np.stack([np.full_like(rows, chunk.site), rows])

    return next(row_numbers(order, step, number))


class _RowNumbers:
    """The numbers of the rows of a stream, starting at ``row``."""

    def __init__(self, stream: ChunkStream, row: int, number: Callable[[Chunk], np.ndarray]):
        self._groups = (
            np.concatenate([number(chunk) for chunk in chunks], -1)[..., places]
            for chunks, places in stream.groups_from(row)
        )
        self._rest = next(self._groups)

    def take(self, count: int) -> np.ndarray:
        """Return the numbers of the next ``count`` rows."""
        while self._rest.shape[-1] < count:
            self._rest = np.concatenate([self._rest, next(self._groups)], -1)
        taken, self._rest = self._rest[..., :count], self._rest[..., count:]
        return taken


def held_out_rows(mixture: Mixture, order: Order, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the held-out rows in the order of the stores as float32 batches; the last one may be shorter."""
    chunks = ((mixture.sites[site].read(start, stop),) for site, start, stop in order.held_out)
    return (x_BD for (x_BD,) in in_batches(chunks, batch_size))


def in_batches(chunks: Iterable[tuple[np.ndarray, ...]], batch_size: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield arrays of ``batch_size`` rows from arrays of other lengths; the last ones may be shorter."""
    rest: tuple[np.ndarray, ...] = ()
    for chunk in chunks:
        rest = tuple(np.concatenate(pair) for pair in zip(rest, chunk, strict=True)) if rest else chunk
        while len(rest[0]) >= batch_size:
            yield tuple(array[:batch_size] for array in rest)
            rest = tuple(array[batch_size:] for array in rest)
    if rest and len(rest[0]):
        yield rest


def first_rows(mixture: Mixture, order: Order, count: int) -> np.ndarray:
    """Return the first training rows of all lanes, at most ``count`` rows and at most one epoch: [N, d] float32."""
    count = min(count, order.rows)
    stream = batches(mixture, order, 0)
    rows = list(itertools.islice(stream, -(-count // order.batch_size)))
    stream.close()
    return np.concatenate(rows)[:count].astype(np.float32)


def length(chunks: Iterable[Chunk]) -> int:
    """Return the number of rows in chunks."""
    return sum(stop - start for _, start, stop in chunks)


def random_generator(seed: int, *stream: int) -> np.random.Generator:
    """Return a generator that is independent of all other keys ``stream`` and the same on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))
