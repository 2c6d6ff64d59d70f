"""Read the rows of a hook point ahead, in the order of the store, and regroup their codes into whole samples.

A store holds the rows of a sample one after another, by timestep and then by position. Batches consist of whole
chunks, the fastest unit to read, so a batch can end inside a sample. :func:`whole_samples` regroups the codes,
which are small.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import typing
from collections.abc import Generator, Iterable, Iterator

import numpy as np

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents.layout import join_chunks
from revelio_jax.store import SiteReader, Store
from revelio_jax.training.mixture import open_mixture

READERS = 8  # threads; they wait for the disk or the network, not for Python
READ_AHEAD = 2  # batches in memory, in addition to the batch being encoded and the previous one

_Future = concurrent.futures.Future[typing.Any]


class RowBatch(typing.NamedTuple):
    """Rows x_ND [N, d] in the stored dtype, and the sample, position and timestep of each row, int32 [N]."""

    x_ND: np.ndarray
    sample_N: np.ndarray
    position_N: np.ndarray
    timestep_N: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class CodeBatch:
    """The codes of N rows without their zeros: E entries, row by row.

    ``fires_N`` is the number of latents that fire on each row. ``latent_E``, int32, and ``value_E``, float32, are
    the entries. ``sample_N``, ``position_N`` and ``timestep_N`` are int32, as in the store.
    """

    sample_N: np.ndarray
    position_N: np.ndarray
    timestep_N: np.ndarray
    fires_N: np.ndarray
    latent_E: np.ndarray
    value_E: np.ndarray


def open_site(config: Config) -> tuple[Store, SiteReader]:
    """Return the store of ``config`` and the reader of config.data.site, by default the first hook point.

    Raise InputError unless ``config`` has exactly one store and the hook point has rows.
    """
    entries = config.data.stores or (f"1:{config.extract.store}",)
    if not config.data.stores and not config.extract.store:
        raise InputError(
            "config.extract.store is not set; set it, or set config.data.stores, to the store to interpret"
        )
    mixture = open_mixture(entries, config.data.site)
    if len(mixture.stores) != 1:
        raise InputError(
            f"config.data.stores has {len(mixture.stores)} stores; it must have one, for example "
            f"--config.data.stores={mixture.stores[0].location}"
        )
    if not mixture.rows:
        raise InputError(f"hook point {mixture.name} of store {mixture.stores[0].location} has no rows")
    return mixture.stores[0], mixture.sites[0]


def largest_batch(site: SiteReader, batch_size: int) -> int:
    """Return the number of rows of the largest batch of :func:`batches`."""
    return max(sum(stop - start for start, stop in group) for group in _chunk_groups(site.chunks, batch_size))


def batches(site: SiteReader, batch_size: int) -> Generator[RowBatch, None, None]:
    """Yield all rows in order, in batches of at most ``batch_size`` rows, or of one chunk if that is longer.

    The memory of x_ND is reused: a batch is valid until two more batches have been requested. Close the generator to
    stop its threads. Raise InputError if sample numbers decrease.
    """
    groups, most = list(_chunk_groups(site.chunks, batch_size)), largest_batch(site, batch_size)
    dtype = site.arrays["activations"].dtype.numpy_dtype
    memory = collections.deque(np.empty((most, site.d), dtype) for _ in range(READ_AHEAD + 2))
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        ahead: collections.deque[tuple[np.ndarray, list[_Future], list[list[_Future]]]] = collections.deque()

        def start_reading(group: list[tuple[int, int]]) -> None:
            rows = memory[0]
            memory.rotate(-1)
            ends = itertools.accumulate(stop - start for start, stop in group)
            reading = [
                readers.submit(site.read_into, start, rows[end - stop + start : end])
                for (start, stop), end in zip(group, ends, strict=True)
            ]
            indices = [
                [readers.submit(site.read_index, name, *rows_of_run) for rows_of_run in join_chunks(group, most)]
                for name in ("sample", "position", "timestep")
            ]
            ahead.append((rows, reading, indices))

        last_sample = -1
        try:
            for group in groups[: READ_AHEAD + 1]:
                start_reading(group)
            for number in range(len(groups)):
                rows, reading, indices = ahead.popleft()
                for future in reading:
                    future.result()
                sample_N, position_N, timestep_N = (
                    np.concatenate([future.result() for future in futures]) for futures in indices
                )
                if (np.diff(sample_N, prepend=last_sample) < 0).any():
                    raise InputError(f"hook point {site.name}: the rows are not sorted by sample")
                last_sample = sample_N[-1]
                yield RowBatch(rows[: len(sample_N)], sample_N, position_N, timestep_N)
                if number + READ_AHEAD + 1 < len(groups):
                    start_reading(groups[number + READ_AHEAD + 1])
        finally:
            readers.shutdown(cancel_futures=True)


def compact(batch: RowBatch, values_NK: np.ndarray, indices_NK: np.ndarray) -> CodeBatch:
    """Return the codes of a batch without zeros, from the values and latents in its K slots."""
    fires_NK = values_NK > 0
    if fires_NK.all():  # nearly always with top-k
        fires_N = np.full(len(values_NK), values_NK.shape[1], np.int32)
        latent_E, value_E = indices_NK.reshape(-1), values_NK.reshape(-1)
    else:
        fires_N = fires_NK.sum(1, dtype=np.int32)
        latent_E, value_E = indices_NK[fires_NK], values_NK[fires_NK]
    return CodeBatch(batch.sample_N, batch.position_N, batch.timestep_N, fires_N, latent_E, value_E)


def whole_samples(batches: Iterable[CodeBatch]) -> Iterator[CodeBatch]:
    """Yield the same rows in batches that never split a sample.

    An incomplete sample is held back until its last row arrives, so a batch can be as long as the longest sample.
    """
    incomplete: list[CodeBatch] = []
    for batch in batches:
        last = batch.sample_N[-1]
        first_row = int(np.searchsorted(batch.sample_N, last))  # of the last sample: sample numbers ascend
        if first_row or (incomplete and incomplete[-1].sample_N[-1] != last):
            yield _concatenate([*incomplete, _rows(batch, 0, first_row)])
            incomplete = []
        incomplete.append(_rows(batch, first_row, len(batch.sample_N)))
    if incomplete:
        yield _concatenate(incomplete)


def _rows(batch: CodeBatch, start: int, stop: int) -> CodeBatch:
    first, last = (int(batch.fires_N[:row].sum()) for row in (start, stop))
    rows, entries = slice(start, stop), slice(first, last)
    return CodeBatch(
        batch.sample_N[rows],
        batch.position_N[rows],
        batch.timestep_N[rows],
        batch.fires_N[rows],
        batch.latent_E[entries],
        batch.value_E[entries],
    )


def _concatenate(batches: list[CodeBatch]) -> CodeBatch:
    names = [field.name for field in dataclasses.fields(CodeBatch)]
    return CodeBatch(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in names))


def _chunk_groups(chunks: Iterable[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Yield groups of consecutive chunks that have at most ``most`` rows together; a larger chunk is a group alone."""
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
