"""JumpReLU and the pseudo-gradient of its threshold (Rajamanoharan et al. 2024, arXiv 2407.14435).

The derivative of the jump is a delta function. It is replaced by a rectangle of width ``bandwidth`` around the
threshold (equations 11 and 12).
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def relu(x_BF: jax.Array, threshold_F: jax.Array, bandwidth: float) -> jax.Array:
    """Return x where it is above the threshold and 0 elsewhere: [B, F]."""
    return jnp.where(x_BF > threshold_F, x_BF, 0)


@relu.defjvp
def _relu_jvp(
    bandwidth: float, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x_BF, threshold_F), (dx_BF, dthreshold_F) = primals, tangents
    near_BF = jnp.abs(x_BF - threshold_F) < bandwidth / 2
    return relu(x_BF, threshold_F, bandwidth), (
        jnp.where(x_BF > threshold_F, dx_BF, 0) - jnp.where(near_BF, threshold_F / bandwidth, 0) * dthreshold_F
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def fires(x_BF: jax.Array, threshold_F: jax.Array, bandwidth: float) -> jax.Array:
    """Return 1 where x is above the threshold and 0 elsewhere: [B, F] float32."""
    return (x_BF > threshold_F).astype(jnp.float32)


@fires.defjvp
def _fires_jvp(
    bandwidth: float, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x_BF, threshold_F), (_, dthreshold_F) = primals, tangents
    near_BF = jnp.abs(x_BF - threshold_F) < bandwidth / 2
    return fires(x_BF, threshold_F, bandwidth), -jnp.where(near_BF, 1 / bandwidth, 0) * dthreshold_F
