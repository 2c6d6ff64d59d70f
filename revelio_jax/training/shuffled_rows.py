"""Read groups of chunks into memory in which their rows are already shuffled.

A chunk is read into a small buffer that stays in the processor's cache, and its rows are copied from there to their
places. This is the only copy on the host: batches are views of the shuffled memory where possible. The memory of a
group is used again once nothing refers to it, for example no batch whose transfer to a device is unfinished.
"""

import collections
import concurrent.futures
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from revelio_jax.store import SiteReader

READERS = 8  # chunks that are read at a time; reads mostly wait for the disk or the network
THREADS = min(4, os.cpu_count() or 1)  # that copy rows; each waits for READERS / THREADS chunks
READ_AHEAD = 1  # groups of a stream in memory in addition to the current one

ALIGNMENT = 64  # JAX uses memory of this alignment on a CPU without a copy

Chunk = tuple[int, int, int]
"""Rows [start, stop) of a site: (site, start, stop)."""

Group = tuple[Sequence[Chunk], np.ndarray]
"""Chunks, and the places in them of the rows that are used, in order."""

_PendingGroup = tuple[np.ndarray, "list[concurrent.futures.Future[None]]"]
"""The memory of a group that is being read, and the pending reads."""


class Buffers:
    """Arrays [N, d] of one shape. Their memory is used again once neither an array nor a view of it exists."""

    def __init__(self, rows: int, d: int, dtype: np.dtype):
        self._shape, self._dtype = (rows, d), dtype
        self._free: collections.deque[memoryview] = collections.deque()

    def has_free(self) -> bool:
        """Return whether :meth:`take` needs no new memory."""
        return bool(self._free)

    def take(self) -> np.ndarray:
        """Return an array with undefined values, in free memory or in new memory."""
        count = self._shape[0] * self._shape[1] * self._dtype.itemsize
        try:
            memory = self._free.popleft()
        except IndexError:
            block = np.empty(count + ALIGNMENT, np.uint8)
            start = -block.ctypes.data % ALIGNMENT
            memory = block[start : start + count].data
        # All views of this array refer to it, not to the block.
        array = np.frombuffer(memory, self._dtype)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(self._shape)


class ShuffledRows:
    """The rows of a stream of groups. Groups are read ahead as long as memory of earlier groups is free.

    ``buffers`` give the memory of groups. No read starts after ``stopped`` is set.
    """

    def __init__(
        self,
        sites: Sequence[SiteReader],
        groups: Iterator[Group],
        buffers: Buffers,
        readers: concurrent.futures.Executor,
        stopped: threading.Event,
    ):
        self._sites, self._groups, self._buffers = sites, groups, buffers
        self._readers, self._stopped = readers, stopped
        self._rest: np.ndarray | None = None  # of the current group
        self._ahead: collections.deque[_PendingGroup] = collections.deque()
        for _ in range(1 + READ_AHEAD):
            self._start_reading()

    def take(self, count: int) -> list[np.ndarray]:
        """Return the next ``count`` rows as views [N, d] of the memory of groups."""
        views: list[np.ndarray] = []
        while count:
            rest = self._next_group() if self._rest is None else self._rest
            views.append(rest[:count])
            self._rest = rest[count:] if count < len(rest) else None  # an empty view would keep its memory
            count -= len(views[-1])
        self._read_ahead()
        return views

    def _next_group(self) -> np.ndarray:
        self._read_ahead()
        if not self._ahead:  # batches that are still in use have all memory
            self._start_reading()
        rows, reading = self._ahead.popleft()
        for part in reading:  # futures.wait() would never return for canceled futures
            part.result()
        return rows

    def _read_ahead(self) -> None:
        while len(self._ahead) < READ_AHEAD and self._buffers.has_free():
            self._start_reading()

    def _start_reading(self) -> None:
        chunks, places = next(self._groups)
        rows = self._buffers.take()[: len(places)]
        ends = list(itertools.accumulate(stop - start for _, start, stop in chunks))
        targets = np.full(ends[-1], -1)  # the first group may use only some rows
        targets[places] = np.arange(len(places))
        parts = list(zip(chunks, np.split(targets, ends[:-1]), strict=True))
        reading = [self._readers.submit(self._read, parts[i::THREADS], rows) for i in range(THREADS)]
        self._ahead.append((rows, reading))

    def _read(self, parts: Sequence[tuple[Chunk, np.ndarray]], rows: np.ndarray) -> None:
        """Copy row i of each chunk to ``rows[targets[i]]``, for ``parts`` (chunk, targets)."""
        most = max((stop - start for (_, start, stop), _ in parts), default=0)
        depth = min(READERS // THREADS, len(parts))
        buffers = [np.empty((most, rows.shape[1]), rows.dtype) for _ in range(depth)]
        pending: collections.deque[tuple[Callable[[], None], np.ndarray, np.ndarray]] = collections.deque()
        for i, ((site, start, stop), targets) in enumerate(parts):
            if self._stopped.is_set():
                return
            if i >= depth:
                _finish(*pending.popleft(), rows)
            chunk_rows = buffers[i % depth][: stop - start]
            pending.append((self._sites[site].start_into(start, chunk_rows), chunk_rows, targets))
        for read in pending:
            _finish(*read, rows)


def scatter(values: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> None:
    """Set ``rows[targets[i]]`` to row i of ``values`` [N, d], whose dtype is that of ``rows``."""
    # numpy releases the lock of Python for integers, but not for bfloat16.
    integer = np.dtype(f"u{rows.itemsize}")
    rows.view(integer)[targets] = values.view(integer)


def _finish(wait: Callable[[], None], values: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> None:
    wait()
    if targets.min() < 0:
        values, targets = values[targets >= 0], targets[targets >= 0]
    scatter(values, targets, rows)
