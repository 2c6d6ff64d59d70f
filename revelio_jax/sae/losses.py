"""What training minimises: normalised errors, and AuxK, which revives dead latents.

Functions run inside ``jax.shard_map``; sums go over all rows of the ``data`` axis, so that the loss
does not depend on the mesh.
"""

import jax
import jax.numpy as jnp

from revelio_jax.config import Sae
from revelio_jax.sae import sparse, topk
from revelio_jax.sae.module import Code, SparseAutoencoder


def squared_deviation(x_BD: jax.Array) -> jax.Array:
    """Sum over all rows of the squared distance to the mean row: scalar."""
    mean_D = jax.lax.pmean(x_BD.mean(0), "data")
    return jnp.maximum(jax.lax.psum(jnp.square(x_BD - mean_D).sum(), "data"), jnp.finfo(x_BD.dtype).tiny)


def normalised_error(error_BD: jax.Array, deviation: jax.Array) -> jax.Array:
    """Sum of squared errors over ``deviation``; of x - x_hat it is the batch's FVU."""
    return jax.lax.psum(jnp.square(error_BD).sum(), "data") / deviation


def loss(
    model: SparseAutoencoder, x_BD: jax.Array, k: jax.Array | int, deviation: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, Code, jax.Array]]:
    """What is differentiated, all but AuxK; and the FVU, the code and the error x - x_hat [B, D].

    The FVU; for Matryoshka its mean over the prefixes of the dictionary (Bussmann et al. 2025, arXiv
    2503.17547); for MultiTopK plus the weighted one of 4 k latents; for jumprelu plus the penalty on L0.
    """
    sae = model.sae
    code, more = model.codes(x_BD, k)
    error_BD = x_BD - model.decode(code)
    fvu = normalised_error(error_BD, deviation)
    total = fvu
    if sae.prefixes:
        nested = [normalised_error(x_BD - model.decode(part), deviation) for part in prefixes(model, code)]
        total = (fvu + sum(nested)) / (1 + len(nested))
    if more is not None:
        total += sae.multi_topk * normalised_error(x_BD - model.decode(more), deviation)
    if sae.architecture == "jumprelu":
        total += sae.l0_coefficient * model.l0_penalty(x_BD, k)
    return total, (fvu, code, error_BD)


def prefixes(model: SparseAutoencoder, code: Code) -> list[Code]:
    """The code with the first latents only, for every prefix of the dictionary but the whole."""
    local = len(model["b_enc_F"])
    index_BK = code.indices + jax.lax.axis_index("feature") * local
    latents = local * jax.lax.axis_size("feature")
    return [code.where(index_BK < round(share * latents)) for share in model.sae.prefixes[:-1]]


def add_aux_k(
    params: dict[str, jax.Array],
    grads: dict[str, jax.Array],
    x_BD: jax.Array,
    error_BD: jax.Array,
    deviation: jax.Array,
    dead_F: jax.Array,
    sae: Sae,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """AuxK (arXiv 2406.04093, A.2) and its gradients, added to ``grads``.

    The k_aux strongest dead latents of each row reconstruct the error e = x - x_hat that the living
    ones leave: ||e - W_dec z_dead||^2 / deviation. e is data here, no gradient runs through it, and the
    decoder's bias is no part of e_hat, since e holds it already. Returns the loss before alpha and
    the sum of ``grads`` and alpha times its gradients. ``sae`` gives k_aux and alpha.

    Only the dead rows of the matrices are touched. They are gathered into one of a few fixed sizes,
    and the products are dense: k_aux is often near the number of dead latents. Without any dead
    latent the branch that runs returns 0 and ``grads`` as they are.
    """
    sizes = _sizes(len(dead_F), sae.k_aux)
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
            rows = sparse.all_rows(x_BD, error_BD)
            loss, dead_grads = jax.value_and_grad(_aux_loss)(dead, *rows, deviation, sae)
            added = {
                name: grads[name].at[at_C].add(sae.aux_alpha * dead_grads[name], mode="drop")
                for name in ("W_enc_FD", "b_enc_F", "W_dec_FD")
            }
            added["b_dec_D"] = grads["b_dec_D"] + sae.aux_alpha * dead_grads["b_dec_D"]
            return loss, grads | added

        return branch

    # All devices must take the same branch, since branches hold collectives.
    most_dead = jax.lax.pmax(dead_F.sum(), "feature")
    branch = jnp.searchsorted(jnp.array([0, *sizes]), most_dead)
    return jax.lax.switch(branch, [none, *map(some, sizes)], grads)


def _aux_loss(dead, x_BD, error_BD, deviation, sae):
    W_enc_CD, b_enc_C, W_dec_CD, b_dec_D = (
        dead[name] for name in ("W_enc_FD", "b_enc_F", "W_dec_FD", "b_dec_D")
    )
    fixed = jax.lax.stop_gradient
    pre_BC = sparse.product(x_BD - fixed(b_dec_D), W_enc_CD.T, sae.matmul_dtype) + b_enc_C
    # Zero, but it carries the gradient of the encoder's bias input with one small product.
    pre_BC -= fixed(W_enc_CD) @ (b_dec_D - fixed(b_dec_D))
    z_BC = _keep_top(jax.nn.relu(pre_BC), sae.k_aux)
    e_hat_BD = jax.lax.psum(sparse.product(z_BC, W_dec_CD, sae.matmul_dtype), "feature")
    return jnp.square(fixed(error_BD) - e_hat_BD).sum() / deviation


def _keep_top(z_BC, k):
    """z_BC with all but the k largest of a row, over all devices, set to 0. Equals of the k-th stay."""
    if z_BC.shape[1] * jax.lax.axis_size("feature") <= k:
        return z_BC
    least_B1 = topk.kth_largest(jax.lax.stop_gradient(z_BC), k, 1, "feature")
    return jnp.where(z_BC >= least_B1, z_BC, 0)


def _sizes(latents, k_aux):
    """Sizes that dead latents are gathered into: k_aux, where no top-k is needed, up to all latents.

    Steps of half of k_aux at first, since few dead latents are the rule and each size costs in
    proportion; further up by half, since each size is a branch to compile.
    """
    size = min(k_aux // jax.lax.axis_size("feature") or k_aux, latents)
    sizes, step = [], max(size // 2, 4)
    while 0 < size < latents:
        sizes.append(size)
        size += step if size < 3 * k_aux else size // 2
    return [*sizes, latents] if k_aux else []
