"""The neighbours of a latent: those that its decoder is close to, and those that fire on the same rows."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from revelio_jax.interpret.latents.stream import CodeBatch
from revelio_jax.sae import topk

BLOCK = 512  # latents whose neighbours are found together
ENTRIES_PER_ROW = 64  # that are kept of the rows for co-activation, on average, at most


def nearest(W_dec_FD: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The latents with the largest cosine of decoder rows, int32 [F, most], -1 where there is none; those.

    A block of latents is multiplied with all at a time. A row of zeros is near to none.
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
    def of_block(unit_FD, start):
        some_BD = jax.lax.dynamic_slice_in_dim(unit_FD, start, block)
        with jax.default_matmul_precision("highest"):
            cosine_BF = some_BD @ unit_FD.T
        own = start + jnp.arange(block)
        return topk.top_k(cosine_BF.at[jnp.arange(block), own].set(-jnp.inf), count)

    for start in range(0, latents, block):
        first = min(start, latents - block)  # the last block overlaps the one before
        cosine_BK, index_BK = of_block(unit_FD, first)
        indices[first : first + block, :count] = index_BK
        cosines[first : first + block, :count] = cosine_BK
    alone = norm_F1[:, 0] == 0
    indices[alone], cosines[alone] = -1, 0
    cosines[:, count:] = 0
    return indices, cosines


class RowSample:
    """Which latents fire on rows that are drawn uniformly: one from each of ``rows`` equal stretches.

    int32 numbers of latents are kept, at most ENTRIES_PER_ROW x rows of them: whenever there would be more,
    every second row goes, which again depends on the store alone.
    """

    def __init__(self, rows: int, of_rows: int):
        rows = min(rows, of_rows)
        within = np.random.default_rng(0).random(rows)
        self._chosen = ((np.arange(rows) + within) * of_rows / max(rows, 1)).astype(np.int64)
        self._most = ENTRIES_PER_ROW * rows
        self._step = 1  # every step-th of the chosen rows is kept
        self._passed = self._next = 0
        self._numbers: list[np.ndarray] = []  # of the chosen rows that are kept, a part at a time
        self._fires: list[np.ndarray] = []
        self._latents: list[np.ndarray] = []

    def add(self, part: CodeBatch) -> None:
        rows = len(part.fires_N)
        stop = int(np.searchsorted(self._chosen, self._passed + rows))
        number = np.arange(self._next, stop)
        number = number[number % self._step == 0]
        row = self._chosen[number] - self._passed
        self._passed, self._next = self._passed + rows, stop
        if not len(number):
            return
        self._keep(number, part.fires_N[row], _gathered(part.latent_E, part.fires_N, row))
        while sum(map(len, self._latents)) > self._most:
            self._thin()

    def codes(self, latents: int) -> scipy.sparse.csr_array:
        """1 where a latent fires, int32 [rows kept, F]."""
        fires = np.concatenate([np.zeros(1, np.int32), *self._fires])
        entries = np.concatenate([np.zeros(0, np.int32), *self._latents])
        ones = np.ones(len(entries), np.int32)
        return scipy.sparse.csr_array((ones, entries, np.cumsum(fires)), (len(fires) - 1, latents))

    def _keep(self, number, fires, latents):
        self._numbers.append(number)
        self._fires.append(fires)
        self._latents.append(latents)

    def _thin(self):
        self._step *= 2
        parts = list(zip(self._numbers, self._fires, self._latents, strict=True))
        self._numbers, self._fires, self._latents = [], [], []
        for number, fires, latents in parts:
            row = np.flatnonzero(number % self._step == 0)
            self._keep(number[row], fires[row], _gathered(latents, fires, row))


def _gathered(latent_E: np.ndarray, fires_N: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The entries of some rows."""
    starts, length = (np.cumsum(fires_N) - fires_N)[row], fires_N[row]
    at = np.arange(length.sum()) + np.repeat(starts - (np.cumsum(length) - length), length)
    return latent_E[at]


def coactive(codes: scipy.sparse.csr_array, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The latents with the largest Jaccard index of rows, int32 [F, most], -1 where there is none; the index.

    Rows on which both fire over rows on which one does, counted for a block of latents at a time. Among
    equals the lower latent comes first.
    """
    latents = codes.shape[1]
    indices = np.full((latents, most), -1, np.int32)
    scores = np.zeros((latents, most), np.float32)
    fires_F = np.bincount(codes.indices, minlength=latents)
    by_latent = codes.tocsc()
    for start in range(0, latents if most else 0, BLOCK):
        both = (by_latent[:, start : start + BLOCK].T @ codes).tocsr()
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
