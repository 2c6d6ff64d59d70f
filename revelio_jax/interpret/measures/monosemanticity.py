"""The monosemanticity score: how similar the samples of a latent are to an independent model of images or texts.

Source: Pach et al. (arXiv 2504.02821). With the unit embedding e_n of sample n and the activation a_n of a latent on
it, scaled to 0 .. 1 over all N samples,

    score = sum over n != m of a_n a_m <e_n, e_m> / sum over n != m of a_n a_m

Both sums are taken without pairs: sum over n != m of a_n a_m <e_n, e_m> = |sum of a_n e_n|^2 - sum of a_n^2, so memory
and time grow with N instead of N^2. The activation of a sample is the largest over its positions and timesteps.
"""

import numpy as np
import scipy.sparse


class SimilaritySums:
    """Sums over samples from which the score of each latent follows; takes 8 E + 40 bytes per latent.

    ``embedding_NE`` are the embeddings of all samples [N, E] of any length, NaN for samples without one. They are
    scaled to unit length.
    """

    def __init__(self, latents: int, embedding_NE: np.ndarray):
        embedding_NE = embedding_NE.astype(np.float64)
        norm_N1 = np.linalg.norm(embedding_NE, axis=1, keepdims=True)
        self._known_N = np.isfinite(norm_N1[:, 0]) & (norm_N1[:, 0] > 0)
        self._unit_NE = np.where(self._known_N[:, None], embedding_NE, 0) / np.where(self._known_N[:, None], norm_N1, 1)
        self._seen_N = np.zeros(len(embedding_NE), bool)
        self._weighted_FE = np.zeros((latents, embedding_NE.shape[1]))
        self._sum_F, self._squares_F = np.zeros(latents), np.zeros(latents)
        self._least_F = np.full(latents, np.inf)
        self._count_F = np.zeros(latents, np.int64)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in vars(self).values())

    def add(self, samples: np.ndarray, latent_P: np.ndarray, sample_P: np.ndarray, value_P: np.ndarray) -> None:
        """Add the sample numbers ``samples``, and the activations above 0 of P pairs of a latent and one of them.

        A sample may be added once, and each pair once.
        """
        self._seen_N[samples] = True
        known_P = self._known_N[sample_P]
        latent_P, sample_P, value_P = latent_P[known_P], sample_P[known_P], value_P[known_P].astype(np.float64)
        here, column_P = np.unique(sample_P, return_inverse=True)
        fires, row_P = np.unique(latent_P, return_inverse=True)
        value = scipy.sparse.csr_array((value_P, (row_P, column_P)), (len(fires), len(here)))
        self._weighted_FE[fires] += value @ self._unit_NE[here]
        np.add.at(self._sum_F, latent_P, value_P)
        np.add.at(self._squares_F, latent_P, np.square(value_P))
        np.minimum.at(self._least_F, latent_P, value_P)
        self._count_F += np.bincount(latent_P, minlength=len(self._count_F))

    def scores(self) -> np.ndarray:
        """Return the score of each latent, float64 [F]; NaN if no two samples have activations above its smallest."""
        used_N = self._seen_N & self._known_N
        count = int(used_N.sum())
        # The smallest activation is subtracted. It is 0 unless the latent fires on every sample. The division by the
        # largest one cancels.
        least_F = np.where(self._count_F == count, self._least_F, 0)
        least_F = np.where(np.isfinite(least_F), least_F, 0)
        weighted_FE = self._weighted_FE - least_F[:, None] * self._unit_NE[used_N].sum(0)
        sum_F = self._sum_F - count * least_F
        squares_F = self._squares_F - 2 * least_F * self._sum_F + count * np.square(least_F)
        similar_F, pairs_F = np.square(weighted_FE).sum(1) - squares_F, np.square(sum_F) - squares_F
        # With a single sample, both differences are rounding errors.
        enough_F = pairs_F > 1e-9 * np.square(sum_F)
        return np.where(enough_F, similar_F, np.nan) / np.where(enough_F, pairs_F, 1)

    def chance(self) -> float | None:
        """Return the mean similarity of two different samples, the score of a latent that is equal on all samples."""
        used_N = self._seen_N & self._known_N
        count = int(used_N.sum())
        if count < 2:
            return None
        return float((np.square(self._unit_NE[used_N].sum(0)).sum() - count) / (count * (count - 1)))


def monosemanticity(activation_NF: np.ndarray, embedding_NE: np.ndarray) -> np.ndarray:
    """Return the score of each latent, float64 [F], from its activations >= 0 [N, F] on samples and their embeddings.

    It is NaN if no two samples have activations above the smallest one.
    """
    sums = SimilaritySums(activation_NF.shape[1], embedding_NE)
    sample_P, latent_P = np.nonzero(activation_NF)
    sums.add(np.arange(len(activation_NF)), latent_P, sample_P, activation_NF[sample_P, latent_P])
    return sums.scores()
