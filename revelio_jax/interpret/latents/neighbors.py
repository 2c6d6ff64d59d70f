"""Find the neighbors of a latent: latents with a similar decoder row, and latents that fire on the same rows."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from revelio_jax.interpret.latents.stream import CodeBatch
from revelio_jax.sae import topk

BLOCK = 512  # latents whose neighbors are computed together
ENTRIES_PER_ROW = 64  # largest mean number of entries per row that co-activation counts


def nearest(W_dec_FD: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents with the most similar decoder rows.

    The result has indices, int32 [F, most], -1 in unused places, and cosines, float32 [F, most], largest first. A row
    of zeros has no neighbors.
    """
    latents, count = len(W_dec_FD), min(most, len(W_dec_FD) - 1)
    indices = np.full((latents, most), -1, np.int32)
    cosines = np.zeros((latents, most), np.float32)
    if not count:
        return indices, cosines
    norm_F1 = np.linalg.norm(W_dec_FD, axis=1, keepdims=True)
    unit_FD = jnp.asarray(W_dec_FD / np.where(norm_F1 > 0, norm_F1, 1))
    block = min(BLOCK, latents)

    @jax.jit
    def nearest_of_block(unit_FD, start):
        block_BD = jax.lax.dynamic_slice_in_dim(unit_FD, start, block)
        with jax.default_matmul_precision("highest"):
            cosine_BF = block_BD @ unit_FD.T
        own = start + jnp.arange(block)
        return topk.top_k(cosine_BF.at[jnp.arange(block), own].set(-jnp.inf), count)

    for start in range(0, latents, block):
        first = min(start, latents - block)  # the last block overlaps the previous one
        cosine_BK, index_BK = nearest_of_block(unit_FD, first)
        indices[first : first + block, :count] = index_BK
        cosines[first : first + block, :count] = cosine_BK
    is_zero_F = norm_F1[:, 0] == 0
    indices[is_zero_F], cosines[is_zero_F] = -1, 0
    cosines[:, count:] = 0
    return indices, cosines


class CoactivationRows:
    """The latents that fire on a random subset of the rows: one row from each of ``rows`` equal stretches.

    Memory holds at most ENTRIES_PER_ROW x ``rows`` int32 latent numbers. If more are added, every second row is
    dropped. The chosen rows depend only on ``store_rows``, the number of rows of the store, and on the codes.
    """

    def __init__(self, rows: int, store_rows: int):
        rows = min(rows, store_rows)
        offset = np.random.default_rng(0).random(rows)
        self._chosen = ((np.arange(rows) + offset) * store_rows / max(rows, 1)).astype(np.int64)
        self._most = ENTRIES_PER_ROW * rows
        self._step = 1  # every step-th of the chosen rows is held
        self._rows_read = self._next = 0
        self._numbers: list[np.ndarray] = []  # numbers of the chosen rows that are held, one array per batch
        self._fires: list[np.ndarray] = []
        self._latents: list[np.ndarray] = []

    def add(self, batch: CodeBatch) -> None:
        """Add the next rows of the store."""
        rows = len(batch.fires_N)
        stop = int(np.searchsorted(self._chosen, self._rows_read + rows))
        number = np.arange(self._next, stop)
        number = number[number % self._step == 0]
        row = self._chosen[number] - self._rows_read
        self._rows_read, self._next = self._rows_read + rows, stop
        if not len(number):
            return
        self._append(number, batch.fires_N[row], _entries_of_rows(batch.latent_E, batch.fires_N, row))
        while sum(map(len, self._latents)) > self._most:
            self._drop_every_second()

    def codes(self, latents: int) -> scipy.sparse.csr_array:
        """Return an int32 array [rows, F] that is 1 if a latent fires on a row."""
        fires = np.concatenate([np.zeros(1, np.int32), *self._fires])
        entries = np.concatenate([np.zeros(0, np.int32), *self._latents])
        ones = np.ones(len(entries), np.int32)
        return scipy.sparse.csr_array((ones, entries, np.cumsum(fires)), (len(fires) - 1, latents))

    def _append(self, number: np.ndarray, fires: np.ndarray, latents: np.ndarray) -> None:
        self._numbers.append(number)
        self._fires.append(fires)
        self._latents.append(latents)

    def _drop_every_second(self) -> None:
        self._step *= 2
        batches = list(zip(self._numbers, self._fires, self._latents, strict=True))
        self._numbers, self._fires, self._latents = [], [], []
        for number, fires, latents in batches:
            row = np.flatnonzero(number % self._step == 0)
            self._append(number[row], fires[row], _entries_of_rows(latents, fires, row))


def _entries_of_rows(latent_E: np.ndarray, fires_N: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return the entries of the rows ``row``, one row after another."""
    starts, length = (np.cumsum(fires_N) - fires_N)[row], fires_N[row]
    at = np.arange(length.sum()) + np.repeat(starts - (np.cumsum(length) - length), length)
    return latent_E[at]


def coactive(codes: scipy.sparse.csr_array, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents with the largest Jaccard index of the rows on which they fire.

    The index is the number of rows on which both fire divided by the number of rows on which at least one fires.
    The result has indices, int32 [F, most], -1 in unused places, and Jaccard indices, float32 [F, most], largest first.
    Among equals the lower latent comes first. ``codes`` [rows, F] is 1 if a latent fires.
    """
    latents = typing.cast(tuple[int, int], codes.shape)[1]
    indices = np.full((latents, most), -1, np.int32)
    scores = np.zeros((latents, most), np.float32)
    fires_F = np.bincount(codes.indices, minlength=latents)
    by_latent = codes.tocsc()
    for start in range(0, latents if most else 0, BLOCK):
        both: typing.Any = (by_latent[:, start : start + BLOCK].T @ codes).tocsr()
        for row, (first, last) in enumerate(zip(both.indptr, both.indptr[1:], strict=False)):
            latent = start + row
            other, count = both.indices[first:last], both.data[first:last]
            score = count / (fires_F[latent] + fires_F[other] - count)
            score[other == latent] = 0
            if len(score) > most:
                least = np.partition(score, -most)[-most]
                other, score = other[score >= least], score[score >= least]
            order = np.lexsort((other, -score))[:most]
            order = order[score[order] > 0]
            indices[latent, : len(order)] = other[order]
            scores[latent, : len(order)] = score[order]
    return indices, scores
