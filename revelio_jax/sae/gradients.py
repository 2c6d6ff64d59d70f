"""The loss of a batch and its gradients, inside ``jax.shard_map``.

For codes with k latents per row the gradients are explicit formulas, because automatic differentiation would
mostly multiply zeros. With slots, rows are gathered over ``data`` first, and each device computes the whole gradient of
its own latents, so that communication does not grow with the number of latents. With matrices, each device computes
with its own rows, and gradients are summed over ``data``: a matrix of codes is larger than a gradient. Gradients are
added in place to those of AuxK, which saves a pass over matrices that exceed every cache.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from revelio_jax.config import SaeConfig
from revelio_jax.sae import losses
from revelio_jax.sae.aux_k import aux_k
from revelio_jax.sae.code import Code
from revelio_jax.sae.kernels.segment_sum import Gradient
from revelio_jax.sae.module import SparseAutoencoder
from revelio_jax.sae.sharding import all_rows, sum_over_rows, total


class Gradients(typing.NamedTuple):
    """Gradients by parameter, and sums over their rows that an optimizer step needs.

    ``squares`` has for each parameter the sums of squares over its last axis, [F], or the squares of a vector.
    ``parallel_F`` are the dot products of the rows of W_dec_FD and of its gradient.
    """

    by_param: dict[str, jax.Array]
    squares: dict[str, jax.Array]
    parallel_F: jax.Array


Results = tuple[Gradients, jax.Array, Code, dict[str, jax.Array]]


def batch_gradients(
    params: dict[str, jax.Array],
    rounded: dict[str, jax.Array] | None,
    x_BD: jax.Array,
    k: jax.Array | int,
    dead_F: jax.Array,
    sae: SaeConfig,
) -> tuple[Gradients, jax.Array, dict[str, jax.Array]]:
    """Return the gradients, the number of rows on which each latent fired [F], and metrics.

    ``rounded`` are matrices for products in place of those in ``params``. Metrics are loss, fvu, aux_loss, l0 and
    ``smallest``, the smallest positive value of all codes.
    """
    if sae.architecture in ("dense", "jumprelu"):
        grads, fired_F, code, metrics = _automatic(params, x_BD, k, dead_F, sae)
    else:
        grads, fired_F, code, metrics = _explicit(params, rounded or {}, x_BD, k, dead_F, sae)
    positive = code.values > 0
    metrics |= {
        "l0": total(positive.sum()) / jax.lax.psum(len(x_BD), "data"),
        "smallest": total(jnp.where(positive, code.values, jnp.inf).min(), jax.lax.pmin),
    }
    # XLA for TPUs would compute gradients in the transposed layout, and copy the whole state to it and back.
    by_param = {
        name: with_layout_constraint(grad, Layout(tuple(range(grad.ndim)))) for name, grad in grads.by_param.items()
    }
    return grads._replace(by_param=by_param), fired_F, metrics


def _explicit(
    params: dict[str, jax.Array],
    rounded: dict[str, jax.Array],
    x_BD: jax.Array,
    k: jax.Array | int,
    dead_F: jax.Array,
    sae: SaeConfig,
) -> Results:
    own_W_dec_FD, params = params["W_dec_FD"], params | rounded
    model = SparseAutoencoder(params, sae)
    deviation = losses.squared_deviation(x_BD)
    weighted = losses.terms(model, *model.codes(x_BD, k))
    decoded = [code.decode_error(x_BD, params["W_dec_FD"], params["b_dec_D"], sae) for _, code in weighted]
    errors = [error_BD for error_BD, _ in decoded]
    fvus = [losses.normalized_error(error_BD, deviation) for error_BD in errors]

    code, error_BD = weighted[0][1], errors[0]
    # Derivatives of the loss by each reconstruction, and by the values of its code.
    factors = [-2 * weight / deviation for weight, _ in weighted]
    grad_x_hat = [factor * error_BD for factor, error_BD in zip(factors, errors, strict=True)]
    grad_values = [factor * dots.values for factor, (_, dots) in zip(factors, decoded, strict=True)]
    # All terms have the latents of the first code, because a term only sets some of its values to 0.
    grad_code = dataclasses.replace(code, values=sum(grad_values))
    rows = x_BD, error_BD, grad_x_hat, grad_code, [part.values for _, part in weighted]
    # With slots, from here on: rows of all devices and latents of this device.
    x_BD, error_BD, grad_x_hat, grad_code, values = rows if code.indices is None else all_rows(rows)
    codes = [dataclasses.replace(grad_code, values=part) for part in values]
    aux_loss, grads = aux_k(params, x_BD, error_BD, deviation, dead_F, sae)
    dec = Gradient(grads["W_dec_FD"])
    for part, grad_BD in zip(codes, grad_x_hat, strict=True):
        dec = part.add_outer(dec.grad_FD, grad_BD, sae, own_W_dec_FD)
        grads["b_dec_D"] += grad_BD.sum(0)
    enc = grad_code.add_outer(grads["W_enc_FD"], x_BD - params["b_dec_D"], sae)
    grads |= {"W_dec_FD": dec.grad_FD, "W_enc_FD": enc.grad_FD}
    grad_b_enc_F = grad_code.sums(len(dead_F), sae) if enc.sums_F is None else enc.sums_F
    grads["b_enc_F"] += grad_b_enc_F
    # The encoder's input is x - b_dec; its gradient, summed over rows, is one small product.
    grads["b_dec_D"] -= jax.lax.psum(grad_b_enc_F @ params["W_enc_FD"], "feature")
    fired_F = codes[0].count(len(dead_F), sae.dead_threshold)
    if code.indices is None:
        aux_loss, grads, fired_F = sum_over_rows((aux_loss, grads, fired_F), x_BD)
    loss = sum(weight * fvu for (weight, _), fvu in zip(weighted, fvus, strict=True))
    metrics = {"loss": loss + sae.aux_alpha * aux_loss, "fvu": fvus[0], "aux_loss": aux_loss}
    return _with_squares(grads, own_W_dec_FD, {"W_dec_FD": dec, "W_enc_FD": enc}), fired_F, code, metrics


def _with_squares(
    grads: dict[str, jax.Array], W_dec_FD: jax.Array, known: dict[str, Gradient] | None = None
) -> Gradients:
    """Return the gradients with the sums that ``known`` does not have yet."""
    squares = {name: jnp.square(grad.reshape(len(grad), -1)).sum(1) for name, grad in grads.items()}
    squares |= {name: sums.squares_F for name, sums in (known or {}).items() if sums.squares_F is not None}
    parallel_F = known["W_dec_FD"].dots_F if known else None
    return Gradients(grads, squares, (grads["W_dec_FD"] * W_dec_FD).sum(1) if parallel_F is None else parallel_F)


def _automatic(
    params: dict[str, jax.Array], x_BD: jax.Array, k: jax.Array | int, dead_F: jax.Array, sae: SaeConfig
) -> Results:
    """Differentiate automatically, for codes in which every latent may fire; communication grows with the latents."""
    deviation = losses.squared_deviation(x_BD)

    def loss(params: dict[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, Code, jax.Array]]:
        model = SparseAutoencoder(params, sae)
        code, _ = model.codes(x_BD, k)
        error_BD = x_BD - model.decode(code)
        fvu = losses.normalized_error(error_BD, deviation)
        penalty = sae.l0_coefficient * model.l0_penalty(x_BD, k) if sae.architecture == "jumprelu" else 0
        return fvu + penalty, (fvu, code, error_BD)

    (penalized_loss, (fvu, code, error_BD)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    x_BD, error_BD = all_rows((x_BD, error_BD))
    aux_loss, aux_grads = aux_k(params, x_BD, error_BD, deviation, dead_F, sae)
    grads = jax.tree.map(jnp.add, grads, aux_grads)
    fired_F = jax.lax.psum(code.count(len(dead_F), sae.dead_threshold), "data")
    metrics = {"loss": penalized_loss + sae.aux_alpha * aux_loss, "fvu": fvu, "aux_loss": aux_loss}
    return _with_squares(grads, params["W_dec_FD"]), fired_F, code, metrics
