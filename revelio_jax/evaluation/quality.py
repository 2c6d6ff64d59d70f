"""The quality of an SAE's reconstruction over rows, and over groups of them."""

import functools
import typing
from collections.abc import Callable, Iterable

import jax
import numpy as np

from revelio_jax.config import SaeConfig
from revelio_jax.evaluation.groups import Grouping
from revelio_jax.sae import SparseAutoencoder, forms, sharding
from revelio_jax.training.step import State

DENSITY_EDGES = np.linspace(-8, 0, 33)  # log10 of the share of rows on which a latent fires
ALWAYS = 0.1  # a latent that fires on more than this share of the rows is always firing


class DensityHistogram(typing.TypedDict):
    """The number of latents by the log10 of the share of rows on which they fire; dead latents are left out."""

    log10_edges: list[float]
    latents: list[int]


class GroupQuality(typing.TypedDict):
    """Reconstruction quality over the rows of a group; see :func:`measure`."""

    rows: int
    fvu: float
    cosine: float
    l0: float
    dead_fraction: float


class Quality(GroupQuality):
    """Reconstruction quality over all rows. ``groups`` has the one of each group that has rows, by grouping."""

    explained_variance: float
    always_firing: int
    density_histogram: DensityHistogram
    groups: dict[str, dict[str, GroupQuality]]


def measure(
    state: State,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    partitions: list[Grouping],
    sae: SaeConfig,
    batch_size: int,
    mesh: jax.sharding.Mesh,
) -> tuple[Quality, np.ndarray]:
    """Return the quality over the rows of ``batches``, in units of the stored rows, and the latents that fire [F].

    ``batches`` have rows [N, d] and their groups [N, partitions], and the first of ``partitions`` has one group of all
    rows. Sums are float64. The FVU of a group is E / V: E is its sum of squared errors, and V its sum of squared
    distances from the mean of all rows, so that the FVU of all rows is a weighted mean of those of the groups. V is
    summed about the training mean, which only reduces rounding errors. ``dead_fraction`` is the share of latents that
    are never above ``dead_threshold`` in the group, and ``always_firing`` the number of those above it on more than a
    tenth of all rows.
    """
    sizes = [len(grouping.groups) for grouping in partitions]
    first_P = np.cumsum([0, *sizes[:-1]])
    reconstruct = make_reconstruct(sae, sum(sizes), mesh)
    mean_D, scale = np.asarray(state.mean_D, np.float64), float(state.scale)
    rows_G, error_G, squares_G, cosine_G, active_G = np.zeros((5, sum(sizes)))
    sum_GD = np.zeros((sum(sizes), len(mean_D)))
    fired_GF = np.zeros((sum(sizes), len(state.rows_since_fired_F)), np.int64)
    for x_ND, groups_NP in batches:
        count, rest = len(x_ND), batch_size - len(x_ND)
        x_BD = np.pad(x_ND, ((0, rest), (0, 0)))  # one shape compiles once
        groups_BP = np.pad(groups_NP + first_P, ((0, rest), (0, 0)), constant_values=-1).astype(np.int32)
        x_hat_BD, fired, active_B = reconstruct(state, x_BD, groups_BP)
        fired_GF += np.asarray(fired)
        x_ND = x_ND.astype(np.float64)
        x_hat_ND = mean_D + scale * np.asarray(x_hat_BD[:count], np.float64)
        norms_N = np.linalg.norm(x_ND, axis=1) * np.linalg.norm(x_hat_ND, axis=1)
        cosine_N = (x_ND * x_hat_ND).sum(1) / np.maximum(norms_N, 1e-30)
        centered_ND = x_ND - mean_D
        for groups_N in groups_BP[:count].T:
            add = functools.partial(np.bincount, groups_N, minlength=sum(sizes))
            rows_G += add()
            error_G += add(np.square(x_ND - x_hat_ND).sum(1))
            squares_G += add(np.square(centered_ND).sum(1))
            cosine_G += add(cosine_N)
            active_G += add(np.asarray(active_B[:count], np.float64))
            np.add.at(sum_GD, groups_N, centered_ND)

    shift_D = sum_GD[0] / rows_G[0]  # the mean of all rows, about the training mean
    variance_G = squares_G - 2 * sum_GD @ shift_D + rows_G * (shift_D @ shift_D)

    def of_group(g: int) -> GroupQuality:
        return {
            "rows": int(rows_G[g]),
            "fvu": float(error_G[g] / max(variance_G[g], 1e-300)),
            "cosine": float(cosine_G[g] / rows_G[g]),
            "l0": float(active_G[g] / rows_G[g]),
            "dead_fraction": float((fired_GF[g] == 0).mean()),
        }

    everything, fired_F = of_group(0), fired_GF[0]
    histogram, _ = np.histogram(np.log10(fired_F[fired_F > 0] / rows_G[0]), DENSITY_EDGES)
    quality: Quality = {
        **everything,
        "explained_variance": 1 - everything["fvu"],
        "always_firing": int((fired_F > ALWAYS * rows_G[0]).sum()),
        "density_histogram": {"log10_edges": DENSITY_EDGES.tolist(), "latents": histogram.tolist()},
        "groups": {
            grouping.name: {name: of_group(first + i) for i, name in enumerate(grouping.groups) if rows_G[first + i]}
            for grouping, first in zip(partitions[1:], first_P[1:], strict=True)
        },
    }
    return quality, fired_F > 0


def make_reconstruct(sae: SaeConfig, groups: int, mesh: jax.sharding.Mesh) -> Callable[..., typing.Any]:
    """Return the compiled ``reconstruct(state, x_BD, groups_BP) -> (x_hat_BD, fired_GF, active_B)``.

    x_BD are stored rows, x_hat_BD normalized reconstructions. ``groups_BP`` are the groups of each row; -1 is none.
    fired_GF, int32, is the number of rows of each group on which each latent is above ``dead_threshold``. active_B is
    the number of positive values of each row.
    """

    def local(params, threshold, x_BD, groups_BP, sae):
        model = SparseAutoencoder(params, sae)
        code = model.infer(x_BD, threshold)
        x_hat_BD = model.decode(code)
        latents = len(params["b_enc_F"])
        fired_GF = sum(code.count_by(group_B, groups, latents, sae.dead_threshold) for group_B in groups_BP.T)
        active_B = jax.lax.psum((code.values > 0).sum(1), "feature")
        return x_hat_BD, jax.lax.psum(fired_GF, "data"), active_B

    @jax.jit
    def reconstruct(state, x_BD, groups_BP):
        return jax.shard_map(
            functools.partial(local, sae=forms.resolved(sae, len(state.rows_since_fired_F), mesh)),
            mesh=mesh,
            in_specs=(
                sharding.params(sae.architecture),
                sharding.REPLICATED,
                sharding.BATCH,
                sharding.BATCH,
            ),
            out_specs=(sharding.BATCH, jax.P(None, "feature"), sharding.ROWS),
        )(state.best_params, state.threshold, (x_BD - state.mean_D) / state.scale, groups_BP)

    return reconstruct
