"""What training minimises: the normalised error, and AuxK, which revives dead latents.

Functions run inside ``jax.shard_map``; sums go over all rows of the ``data`` axis, so that the loss
does not depend on the mesh.
"""

import jax
import jax.numpy as jnp

from revelio_jax.sae import sparse, topk


def squared_deviation(x_BD: jax.Array) -> jax.Array:
    """Sum over all rows of the squared distance to the mean row: scalar."""
    mean_D = jax.lax.pmean(x_BD.mean(0), "data")
    return jnp.maximum(jax.lax.psum(jnp.square(x_BD - mean_D).sum(), "data"), jnp.finfo(x_BD.dtype).tiny)


def normalised_error(error_BD: jax.Array, deviation: jax.Array) -> jax.Array:
    """Sum of squared errors over ``deviation``; of x - x_hat it is the batch's FVU."""
    return jax.lax.psum(jnp.square(error_BD).sum(), "data") / deviation


def add_aux_k(
    params: dict[str, jax.Array],
    grads: dict[str, jax.Array],
    x_BD: jax.Array,
    error_BD: jax.Array,
    deviation: jax.Array,
    dead_F: jax.Array,
    k_aux: int,
    alpha: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """AuxK (arXiv 2406.04093, A.2) and its gradients, added to ``grads``.

    The k_aux strongest dead latents of each row reconstruct the error e = x - x_hat that the living
    ones leave: ||e - W_dec z_dead||^2 / deviation. e is data here, no gradient runs through it, and the
    decoder's bias is no part of e_hat, since e holds it already. Returns the loss before ``alpha`` and
    the sum of ``grads`` and alpha times its gradients.

    Only the dead rows of the matrices are touched. They are gathered into one of a few fixed sizes,
    and the products are dense: k_aux is often near the number of dead latents. Without any dead
    latent the branch that runs returns 0 and ``grads`` as they are.
    """
    sizes = _sizes(len(dead_F), k_aux)
    if not sizes:
        return jnp.zeros(()), grads

    def none(grads):
        return jnp.zeros(()), grads

    def some(size):
        def branch(grads):
            at_C = jnp.nonzero(dead_F, size=size, fill_value=len(dead_F))[0]
            # Slots beyond the number of dead latents read zeros and write nowhere.
            dead = {
                name: params[name].at[at_C].get(mode="fill", fill_value=0)
                for name in ("W_enc_FD", "b_enc_F", "W_dec_FD")
            }
            dead["b_dec_D"] = params["b_dec_D"]
            loss, dead_grads = jax.value_and_grad(_aux_loss)(dead, x_BD, error_BD, deviation, k_aux)
            added = {
                name: grads[name].at[at_C].add(alpha * dead_grads[name], mode="drop")
                for name in ("W_enc_FD", "b_enc_F", "W_dec_FD")
            }
            added["b_dec_D"] = grads["b_dec_D"] + alpha * dead_grads["b_dec_D"]
            return loss, added

        return branch

    # All devices must take the same branch, since branches hold collectives.
    most_dead = jax.lax.pmax(dead_F.sum(), "feature")
    branch = jnp.searchsorted(jnp.array([0, *sizes]), most_dead)
    return jax.lax.switch(branch, [none, *map(some, sizes)], grads)


def _aux_loss(dead, x_BD, error_BD, deviation, k_aux):
    W_enc_CD, b_enc_C, W_dec_CD, b_dec_D = (
        dead[name] for name in ("W_enc_FD", "b_enc_F", "W_dec_FD", "b_dec_D")
    )
    fixed = jax.lax.stop_gradient
    pre_BC = sparse.pre_activations(x_BD, W_enc_CD, b_enc_C, fixed(b_dec_D))
    # Zero, but it carries the gradient of the encoder's bias input with one small product.
    pre_BC -= fixed(W_enc_CD) @ (b_dec_D - fixed(b_dec_D))
    z_BC = _keep_top(jax.nn.relu(pre_BC), k_aux)
    e_hat_BD = jax.lax.psum(z_BC @ W_dec_CD, "feature")
    return normalised_error(fixed(error_BD) - e_hat_BD, deviation)


def _keep_top(z_BC, k):
    """z_BC with all but the k largest of a row, over all devices, set to 0."""
    rows, size = z_BC.shape
    if size * jax.lax.axis_size("feature") <= k:
        return z_BC
    values_BK, at_BK = jax.lax.top_k(jax.lax.stop_gradient(z_BC), min(k, size))
    keep_BK = topk.survivors(values_BK, k, "feature")
    keep_BC = jnp.zeros_like(z_BC, bool).at[jnp.arange(rows)[:, None], at_BK].set(keep_BK)
    return jnp.where(keep_BC, z_BC, 0)


def _sizes(latents, k_aux):
    """Sizes that dead latents are gathered into: k_aux, where no top-k is needed, then x4 up to all."""
    sizes = []
    size = min(k_aux // jax.lax.axis_size("feature") or k_aux, latents)
    while 0 < size < latents:
        sizes.append(size)
        size *= 4
    return [*sizes, latents] if k_aux else []
