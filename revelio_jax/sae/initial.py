"""Initial parameters: unit-norm decoder rows, an encoder parallel to them, and the center of the rows as bias."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from revelio_jax.config import SaeConfig
from revelio_jax.sae import forms, sharding
from revelio_jax.sae.module import SparseAutoencoder

ROW_SHARE = 0.8  # of a row's direction in a decoder row; the rest is random, so that equal rows give different latents
RANDOM = 4  # one latent of this many stays random, for the features in most rows, which C^-1 removes from the others
RIDGE = 0.03  # added to the covariance in :func:`row_directions`, as a share of the mean variance
FIT_ROWS = 512  # to fit the encoder's factor; few, because each row adds F pre-activations in memory


def initial_params(
    sae: SaeConfig, seed: int, latents: int, b_dec_D: np.ndarray, x_ND: np.ndarray, mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
    """Return float32 parameters on their devices, equal on every mesh except for rounding in :func:`fit`.

    Decoder rows are uniform on the unit sphere. With ``sae.init`` rows, three of four are mostly
    :func:`row_directions` of the normalized training rows ``x_ND``. The encoder starts as a separate copy of the
    decoder. With rows and fitted, the encoder is scaled to ``x_ND``. With kaiming_uniform the encoder is uniform in
    +- sqrt(6 / d), and the decoder has the encoder's rows, scaled to norm 1. jumprelu has one threshold per latent,
    stored as its logarithm.
    """

    def make(b_dec_D: jax.Array, x_ND: jax.Array) -> dict[str, jax.Array]:
        shape, key = (latents, len(b_dec_D)), jax.random.key(seed)
        if sae.init == "kaiming_uniform":
            bound = (6 / shape[1]) ** 0.5
            W_enc_FD = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
            W_dec_FD = unit_rows(W_enc_FD)
        else:
            W_dec_FD = unit_rows(jax.random.normal(key, shape))
            if sae.init == "rows":
                rows_FD = row_directions(jax.random.fold_in(key, 1), x_ND - b_dec_D, latents)
                mostly_rows_FD = unit_rows(ROW_SHARE * rows_FD + (1 - ROW_SHARE) * W_dec_FD)
                # Alternating, so that each prefix of a Matryoshka dictionary has both kinds.
                is_random_F1 = jnp.arange(latents)[:, None] % RANDOM == 0
                W_dec_FD = jnp.where(is_random_F1, W_dec_FD, mostly_rows_FD)
            W_enc_FD = W_dec_FD
        params = {
            "W_enc_FD": jnp.copy(W_enc_FD),
            "b_enc_F": jnp.zeros(latents),
            "W_dec_FD": W_dec_FD,
            "b_dec_D": b_dec_D,
        }
        if sae.architecture == "jumprelu":
            params["log_threshold_F"] = jnp.full(latents, np.log(sae.jump_threshold), jnp.float32)
        return params

    shardings = sharding.named_shardings(mesh, sharding.params(sae.architecture))
    params = jax.jit(make, out_shardings=shardings)(np.asarray(b_dec_D, np.float32), np.asarray(x_ND, np.float32))
    if sae.init in ("rows", "fitted"):
        params["W_enc_FD"] *= fit(params, x_ND[:FIT_ROWS], sae, mesh)
    return params


def row_directions(key: jax.Array, x_ND: jax.Array, latents: int) -> jax.Array:
    """Return unit vectors along C^-1 x for random rows x: [F, D]. C is the covariance of the centered rows ``x_ND``.

    A row is closer to its own features than a random vector is. Features that are in most rows would then take most
    latents, so C^-1 removes them: C^-1 x is the linear detector that best separates x from the other rows. No row is
    used twice before all are used. Rows that are not finite are left out. This project's own, measured in
    docs/measurements/sae_quality.md.
    """
    with jax.default_matmul_precision("highest"):
        x_ND = jnp.where(jnp.isfinite(x_ND).all(1, keepdims=True), x_ND, 0)
        covariance_DD = x_ND.T @ x_ND / len(x_ND)
        variance = jnp.trace(covariance_DD) / len(covariance_DD)
        identity_DD = jnp.eye(len(covariance_DD))
        ridge_DD = jnp.where(variance > 0, RIDGE * variance, 1) * identity_DD
        inverse_DD = jax.scipy.linalg.solve(covariance_DD + ridge_DD, identity_DD, assume_a="pos")
        order_N = jax.random.permutation(key, len(x_ND))
        # An inverse, not a solve for all rows: the product is split over devices like its rows.
        return unit_rows(x_ND[order_N[jnp.arange(latents) % len(x_ND)]] @ inverse_DD)


def fit(params: dict[str, jax.Array], x_ND: np.ndarray, sae: SaeConfig, mesh: jax.sharding.Mesh) -> jax.Array:
    """Return <x - b, y> / |y|^2 over all rows: a scalar. y are the reconstructions without the bias b.

    Multiplying the encoder by this factor minimizes the squared error of the initial reconstructions. Random
    directions overlap, so without it the sum of k unit vectors overshoots, and training first has to correct that.
    For all architectures except dense, only the k largest latents of a row are active.
    """
    if sae.architecture != "dense":  # jumprelu also converges to k latents per row
        sae = dataclasses.replace(sae, architecture="topk", multi_topk=0.0)
    sae = forms.resolved(sae, len(params["b_enc_F"]), mesh)

    def local(params: dict[str, jax.Array], x_ND: jax.Array) -> jax.Array:
        model = SparseAutoencoder(params, sae)
        y_ND = model.decode(model.infer(x_ND, threshold=jnp.zeros(()))) - params["b_dec_D"]
        squares = jnp.sum(y_ND * y_ND)
        return jnp.where(squares > 0, jnp.sum((x_ND - params["b_dec_D"]) * y_ND) / squares, 1)

    specs = sharding.params(sae.architecture)
    factor = jax.shard_map(local, mesh=mesh, in_specs=(specs, sharding.REPLICATED), out_specs=sharding.REPLICATED)
    return jax.jit(factor)({name: params[name] for name in specs}, np.asarray(x_ND, np.float32))


def bias(rule: str, x_ND: np.ndarray) -> np.ndarray:
    """Return the initial decoder bias [D] from training rows; ``rule`` is config.sae.b_dec_init."""
    if rule == "zero":
        return np.zeros(x_ND.shape[1])
    return x_ND.mean(0, dtype=np.float64) if rule == "mean" else geometric_median(x_ND)


def unit_rows(W_FD: jax.Array) -> jax.Array:
    """Scale each row of W_FD to norm 1. Rows of zeros do not change."""
    norm_F1 = jnp.linalg.norm(W_FD, axis=1, keepdims=True)
    return W_FD / jnp.where(norm_F1 > 0, norm_F1, 1)


def geometric_median(x_ND: np.ndarray, tolerance: float = 1e-5, max_steps: int = 100) -> np.ndarray:
    """Return the point [D] with the smallest sum of distances to the rows, float64 (Weiszfeld 1937).

    Start at the mean and stop when a step is shorter than ``tolerance`` times the mean distance. Distances have a
    lower bound, so that a row at the point does not cause a division by 0.
    """
    point_D = x_ND.mean(0, dtype=np.float64)
    for _ in range(max_steps):
        distance_N = np.linalg.norm(x_ND - point_D.astype(x_ND.dtype), axis=1)
        spread = distance_N.mean(dtype=np.float64)
        if spread == 0:
            break
        weight_N = 1 / np.maximum(distance_N, 1e-6 * spread)
        next_D = (weight_N @ x_ND) / weight_N.sum(dtype=np.float64)
        step = np.linalg.norm(next_D - point_D)
        point_D = next_D
        if step <= tolerance * spread:
            break
    return point_D
