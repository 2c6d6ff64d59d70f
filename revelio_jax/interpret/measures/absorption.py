"""Absorption: the latents of a class stay silent on some of its samples because another latent fires instead.

For example, latents of the category "food" do not fire on prompts about apples, because a latent of apples, whose
decoder row includes the direction of food, fires. Sources: Chanin et al. (arXiv 2409.14507), and SAEBench (arXiv
2503.09532), whose definition and thresholds these are. With the unit direction p of a linear probe for the class, the
activation a_i and decoder row d_i of latent i, and the projection P = <x - b_dec, p> of a sample,

    main latents          those of a sparse probe for the class, :func:`main_latents`
    absorbing latents     the 3 others with the largest a_i <d_i, p> > 0, of those with cos(d_i, p) >= 0.1
    M, A                  sum of a_i <d_i, p> over the main and over the absorbing latents
    fraction              0 if P <= 0, M >= P or A < 0.4 P; otherwise 1 if M <= 0; otherwise B / (B + M) with
                          B = min(A, P - M)
    fully absorbed        no main latent fires, P > 0, and the latent with the largest a_i <d_i, p> has at least 0.4 P
                          and a cosine of at least 0.025

SAEBench projects x instead of x - b_dec, and takes a_i cos(d_i, p), which is the same for decoder rows of norm 1.
"""

import typing

import numpy as np

MOST_ABSORBING = 3
LEAST_SHARE = 0.4  # of the projection, for absorption
LEAST_COSINE, LEAST_COSINE_FULL = 0.1, 0.025  # of a decoder row and the probe
MOST_MAIN, F1_JUMP = 10, 0.03  # the next main latent must raise F1 by more than this


class AbsorbedSamples(typing.NamedTuple):
    """For N samples: the absorbed fraction [N], whether they are fully absorbed [N], and the strongest latent [N].

    ``strongest`` is the latent with the largest projection on the probe, the absorbing one of fully absorbed samples.
    """

    fraction: np.ndarray
    is_full: np.ndarray
    strongest: np.ndarray


def absorption(
    z_NF: np.ndarray, projection_N: np.ndarray, W_dec_FD: np.ndarray, probe_D: np.ndarray, main: np.ndarray
) -> AbsorbedSamples:
    """Return how far samples are absorbed.

    ``z_NF`` are activations, ``projection_N`` are the projections of x - b_dec on the unit vector of ``probe_D``, and
    ``main`` are the numbers of the main latents.
    """
    probe_D = probe_D.astype(np.float64) / np.linalg.norm(probe_D)
    along_F = W_dec_FD.astype(np.float64) @ probe_D
    cosine_F = along_F / np.maximum(np.linalg.norm(W_dec_FD.astype(np.float64), axis=1), 1e-30)
    each_NF = z_NF * along_F
    main_N = each_NF[:, main].sum(1)
    can_absorb_F = cosine_F >= LEAST_COSINE
    can_absorb_F[main] = False
    others_NF = np.where(can_absorb_F, np.maximum(each_NF, 0), 0)
    count = min(MOST_ABSORBING, others_NF.shape[1])
    absorbed_N = np.partition(others_NF, -count, axis=1)[:, -count:].sum(1)
    reduced_N = np.minimum(absorbed_N, projection_N - main_N)
    is_absorbed_N = (projection_N > 0) & (main_N < projection_N) & (absorbed_N >= LEAST_SHARE * projection_N)
    share_N = reduced_N / np.where(is_absorbed_N & (main_N > 0), reduced_N + main_N, 1)
    fraction_N = np.where(is_absorbed_N, np.where(main_N > 0, share_N, 1.0), 0.0)

    strongest_N = each_NF.argmax(1)
    largest_N = np.take_along_axis(each_NF, strongest_N[:, None], 1)[:, 0]
    is_full_N = (projection_N > 0) & (largest_N >= LEAST_SHARE * projection_N)
    is_full_N &= (cosine_F[strongest_N] >= LEAST_COSINE_FULL) & (z_NF[:, main] == 0).all(1)
    return AbsorbedSamples(fraction_N, is_full_N, strongest_N)


def main_latents(f1_of_count: typing.Sequence[float]) -> int:
    """Return the number of main latents: the first ones, as long as each raises F1 by more than F1_JUMP.

    ``f1_of_count[k - 1]`` is the F1 of the sparse probe on the first k latents.
    """
    count = 1
    while count < len(f1_of_count) and f1_of_count[count] - f1_of_count[count - 1] > F1_JUMP:
        count += 1
    return count
