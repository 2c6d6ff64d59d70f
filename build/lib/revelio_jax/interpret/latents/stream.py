"""Rows of a site in the order of the store, read ahead, and their codes cut between samples.

A store holds the rows of a sample one after another: by timestep, and then by position. Batches are whole
chunks, since that is what a disk reads fast, so they cut samples in two; the codes, which are small, are put
together again by :func:`whole_samples`.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import typing
from collections.abc import Iterable, Iterator

import numpy as np

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents.layout import runs
from revelio_jax.store import SiteReader, Store
from revelio_jax.training.mixture import open_mixture

READERS = 8  # threads: reading waits for the disk or the network, not for Python
READ_AHEAD = 2  # batches that are in memory beside the one that is encoded and the one before


class RowBatch(typing.NamedTuple):
    """Rows x [N, d] in the stored dtype, and of each, int32 [N], its sample, position and timestep."""

    x_ND: np.ndarray
    sample_N: np.ndarray
    position_N: np.ndarray
    timestep_N: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class CodeBatch:
    """Codes of N rows, without what is 0.

    ``fires_N`` has how many latents fire on each row; ``latent_E`` int32 and ``value_E`` float32 have them
    row by row. ``sample_N``, ``position_N`` and ``timestep_N`` are int32, as in the store.
    """

    sample_N: np.ndarray
    position_N: np.ndarray
    timestep_N: np.ndarray
    fires_N: np.ndarray
    latent_E: np.ndarray
    value_E: np.ndarray


def open_site(config: Config) -> tuple[Store, SiteReader]:
    """The one store that config names, and config.data.site, or its first. Raises InputError."""
    entries = config.data.stores or (f"1:{config.extract.store}",)
    if not config.data.stores and not config.extract.store:
        raise InputError("config.extract.store is empty; it, or config.data.stores, names what to interpret")
    mixture = open_mixture(entries, config.data.site)
    if len(mixture.stores) > 1:
        raise InputError(
            f"config.data.stores names {len(mixture.stores)} stores; interpretation reads one: give it as "
            f"--config.data.stores={mixture.stores[0].location}"
        )
    if not mixture.rows:
        raise InputError(f"site {mixture.name} of store {mixture.stores[0].location} has no rows")
    return mixture.stores[0], mixture.sites[0]


def most_rows(site: SiteReader, batch_size: int) -> int:
    """Rows of the longest of :func:`batches`."""
    return max(sum(stop - start for start, stop in group) for group in _groups(site.chunks, batch_size))


def batches(site: SiteReader, batch_size: int) -> Iterator[RowBatch]:
    """All rows, in order, in batches of at most ``batch_size`` rows, or of one chunk where that is longer.

    x_ND is memory that is used again: it holds until the batch after the next is asked for. Raises
    InputError where the samples do not rise. Close it to stop its threads.
    """
    groups, most = list(_groups(site.chunks, batch_size)), most_rows(site, batch_size)
    dtype = site.arrays["activations"].dtype.numpy_dtype
    memory = collections.deque(np.empty((most, site.d), dtype) for _ in range(READ_AHEAD + 2))
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        ahead = collections.deque()

        def begin(group):
            rows = memory[0]
            memory.rotate(-1)
            ends = itertools.accumulate(stop - start for start, stop in group)
            reading = [
                readers.submit(site.read_into, start, rows[end - stop + start : end])
                for (start, stop), end in zip(group, ends, strict=True)
            ]
            indices = [
                [readers.submit(site.read_index, name, *run) for run in runs(group, most)]
                for name in ("sample", "position", "timestep")
            ]
            ahead.append((rows, reading, indices))

        before = -1
        try:
            for group in groups[: READ_AHEAD + 1]:
                begin(group)
            for number in range(len(groups)):
                rows, reading, indices = ahead.popleft()
                for future in reading:
                    future.result()
                sample_N, *others = (np.concatenate([part.result() for part in parts]) for parts in indices)
                if (np.diff(sample_N, prepend=before) < 0).any():
                    raise InputError(
                        f"site {site.name}: rows of samples do not stand one after another in rising order"
                    )
                before = sample_N[-1]
                yield RowBatch(rows[: len(sample_N)], sample_N, *others)
                if number + READ_AHEAD + 1 < len(groups):
                    begin(groups[number + READ_AHEAD + 1])
        finally:
            readers.shutdown(cancel_futures=True)


def compact(batch: RowBatch, values_NK: np.ndarray, indices_NK: np.ndarray) -> CodeBatch:
    """The code of a batch without what is 0."""
    fires_NK = values_NK > 0
    if fires_NK.all():  # the rule for top-k
        fires_N = np.full(len(values_NK), values_NK.shape[1], np.int32)
        latent_E, value_E = indices_NK.reshape(-1), values_NK.reshape(-1)
    else:
        fires_N = fires_NK.sum(1, dtype=np.int32)
        latent_E, value_E = indices_NK[fires_NK], values_NK[fires_NK]
    return CodeBatch(batch.sample_N, batch.position_N, batch.timestep_N, fires_N, latent_E, value_E)


def whole_samples(parts: Iterable[CodeBatch]) -> Iterator[CodeBatch]:
    """The same rows, but no sample is in two parts.

    What is begun waits for its end, so a part may be as long as the sample with the most rows.
    """
    waiting: list[CodeBatch] = []
    for part in parts:
        last = part.sample_N[-1]
        begins = int(np.searchsorted(part.sample_N, last))  # samples rise
        if begins or (waiting and waiting[-1].sample_N[-1] != last):
            yield _joined([*waiting, _rows(part, 0, begins)])
            waiting = []
        waiting.append(_rows(part, begins, len(part.sample_N)))
    if waiting:
        yield _joined(waiting)


def _rows(part: CodeBatch, start: int, stop: int) -> CodeBatch:
    first, last = (int(part.fires_N[:row].sum()) for row in (start, stop))
    rows, entries = slice(start, stop), slice(first, last)
    return CodeBatch(
        part.sample_N[rows],
        part.position_N[rows],
        part.timestep_N[rows],
        part.fires_N[rows],
        part.latent_E[entries],
        part.value_E[entries],
    )


def _joined(parts: list[CodeBatch]) -> CodeBatch:
    names = [field.name for field in dataclasses.fields(CodeBatch)]
    return CodeBatch(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _groups(chunks: Iterable[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Consecutive chunks of at most ``most`` rows together, at least one."""
    group: list[tuple[int, int]] = []
    rows = 0
    for start, stop in chunks:
        if group and rows + stop - start > most:
            yield group
            group, rows = [], 0
        group.append((start, stop))
        rows += stop - start
    if group:
        yield group
