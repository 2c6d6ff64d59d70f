"""Compute features for probes: activations and latents of a store as means over positions or as maps, by timestep."""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import scipy.sparse
from tqdm import tqdm

from revelio_jax.interpret.latents import dictionary, stream
from revelio_jax.interpret.latents.dictionary import Dictionary, SlotCodes
from revelio_jax.interpret.latents.stream import RowBatch
from revelio_jax.store import SiteReader


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureMeans:
    """Means over the positions of S samples at T timesteps.

    ``x``, float32 [S T, D], are means of activations, and ``z``, sparse [S T, F], means of latents. Row s T + t
    belongs to sample s at ``timesteps[t]``. ``rows``, int64 [S, T], is the number of positions.
    """

    timesteps: list[int]
    x: np.ndarray
    z: scipy.sparse.csr_array
    rows: np.ndarray

    def at(self, timestep: int, samples: np.ndarray, of_latents: bool) -> np.ndarray:
        """Return the means of some samples at a timestep, float32 [len(samples), D or F]."""
        rows = samples * len(self.timesteps) + self.timesteps.index(timestep)
        return self.z[rows].toarray() if of_latents else self.x[rows]


def means(site: SiteReader, latents: Dictionary, samples: int, timesteps: list[int], batch_size: int) -> FeatureMeans:
    """Read all rows once and return their means. Memory grows only with the means and the nonzero latents."""
    cells = samples * len(timesteps)
    x = np.zeros((cells, site.d))
    rows = np.zeros(cells, np.int64)
    parts = []
    for batch, codes in read_encoded(site, latents, batch_size):
        cell = batch.sample_N.astype(np.int64) * len(timesteps)
        cell += np.searchsorted(timesteps, batch.timestep_N)
        starts = np.flatnonzero(np.diff(cell, prepend=-1))
        here = cell[starts]
        # The rows of a cell are adjacent. A cell that continues in the next batch is summed there too.
        np.add.at(x, here, np.add.reduceat(batch.x_ND.astype(np.float64), starts))
        np.add.at(rows, here, np.diff(starts, append=len(cell)))
        assert codes is not None  # because latents is set
        values, indices = codes
        row = np.repeat(cell, values.shape[1])
        fires = values.reshape(-1) > 0
        part = scipy.sparse.coo_array(
            (values.reshape(-1)[fires], (row[fires], indices.reshape(-1)[fires])), (cells, latents.n_latents)
        )
        parts.append(part.tocsr())
        if len(parts) > 32:
            parts = [sum(parts[1:], parts[0])]
    each = np.maximum(rows, 1)
    z = scipy.sparse.csr_array(sum(parts[1:], parts[0]).multiply(1 / each[:, None]), dtype=np.float32)
    return FeatureMeans(timesteps, (x / each[:, None]).astype(np.float32), z, rows.reshape(samples, len(timesteps)))


def maps(
    site: SiteReader,
    latents: Dictionary | None,
    timestep: int,
    grid: tuple[int, int],
    samples: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """Return maps at a timestep, float32 [len(samples), height, width, D or F]. Positions without a row are 0.

    The maps show ``latents``, or the activations if it is None. ``samples`` are sample numbers.
    """
    height, width = grid
    place = {int(number): i for i, number in enumerate(samples)}
    depth = latents.n_latents if latents else site.d
    flat_maps = np.zeros((len(samples), height * width, depth), np.float32)
    for batch, codes in read_encoded(site, latents, batch_size):
        rows = np.flatnonzero((batch.timestep_N == timestep) & np.isin(batch.sample_N, samples))
        at = np.array([place[int(number)] for number in batch.sample_N[rows]], np.int64)
        if codes is None:
            flat_maps[at, batch.position_N[rows]] = batch.x_ND[rows]
            continue
        values, indices = (array[rows] for array in codes)
        # An unused slot can hold any latent, so values are added instead of assigned.
        np.add.at(flat_maps, (at[:, None], batch.position_N[rows][:, None], indices), values)
    return flat_maps.reshape(len(samples), height, width, depth)


def read_encoded(
    site: SiteReader, latents: Dictionary | None, batch_size: int
) -> Iterator[tuple[RowBatch, SlotCodes | None]]:
    """Yield all rows in order with their codes, which are None without ``latents``."""
    encode = latents and dictionary.make_encode(latents, stream.largest_batch(site, batch_size))
    with (
        contextlib.closing(stream.batches(site, batch_size)) as batches,
        tqdm(total=site.rows, desc=site.name, unit="row", unit_scale=True, leave=False) as bar,
    ):
        for batch in batches:
            yield batch, encode(batch.x_ND)() if encode else None
            bar.update(len(batch.sample_N))
