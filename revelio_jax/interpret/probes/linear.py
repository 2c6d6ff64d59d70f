"""The linear probe: multinomial logistic regression on features with mean 0 and variance 1, in JAX.

The strength of the L2 penalty is chosen on the validation samples. All strengths are fitted at once.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax

STRENGTHS = np.array(
    [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], np.float32
)  # s of the penalty (s / 2) |W|^2, which is added to the mean loss
STEPS, SMALL = 300, 1e-4  # largest number of L-BFGS steps, and the norm of the gradient at which they stop


class LinearProbe(typing.NamedTuple):
    """A linear probe with logits ((x - mean) / deviation) W + b."""

    mean_D: np.ndarray
    deviation_D: np.ndarray
    W_DC: np.ndarray
    b_C: np.ndarray
    strength: float


@functools.partial(jax.jit, static_argnums=3)
def fit(x_ND: jax.Array, class_N: jax.Array, strengths: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """Minimize mean cross-entropy + (s / 2) |W|^2 for each strength s. Return W [S, D, C] and b [S, C], float32."""
    solver = optax.lbfgs()

    def fit_one(strength):
        def loss(params):
            W, b = params
            losses_N = optax.softmax_cross_entropy_with_integer_labels(x_ND @ W + b, class_N)
            return losses_N.mean() + 0.5 * strength * jnp.square(W).sum()

        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(carry):
            params, state, count, _ = carry
            value, gradient = value_and_grad(params, state=state)
            updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
            params = typing.cast(tuple[jax.Array, jax.Array], optax.apply_updates(params, updates))
            return params, state, count + 1, optax.tree.norm(gradient)

        start = jnp.zeros((x_ND.shape[1], classes)), jnp.zeros(classes)
        carry = start, solver.init(start), 0, jnp.float32(jnp.inf)
        return jax.lax.while_loop(lambda c: (c[2] < STEPS) & (c[3] > SMALL), step, carry)[0]

    with jax.default_matmul_precision("highest"):
        return jax.vmap(fit_one)(strengths)


def train(
    x_ND: np.ndarray, class_N: np.ndarray, validation: tuple[np.ndarray, np.ndarray], classes: int
) -> LinearProbe:
    """Train a probe with the strength that is most accurate on ``validation`` (features and classes).

    Of equally accurate strengths, the largest is chosen. The returned probe is then trained on all samples, including
    ``validation``.
    """
    x_VD, class_V = validation
    mean_D, deviation_D = _moments(x_ND)
    W_SDC, b_SC = fit((x_ND - mean_D) / deviation_D, class_N, STRENGTHS, classes)
    logits = jnp.einsum("vd,sdc->svc", (x_VD - mean_D) / deviation_D, W_SDC) + b_SC[:, None]
    right_S = np.asarray((logits.argmax(-1) == class_V).mean(1))
    best = len(STRENGTHS) - 1 - int(right_S[::-1].argmax())
    x_MD, class_M = np.concatenate([x_ND, x_VD]), np.concatenate([class_N, class_V])
    mean_D, deviation_D = _moments(x_MD)
    W_1DC, b_1C = fit((x_MD - mean_D) / deviation_D, class_M, STRENGTHS[best : best + 1], classes)
    return LinearProbe(mean_D, deviation_D, np.asarray(W_1DC[0]), np.asarray(b_1C[0]), float(STRENGTHS[best]))


@jax.jit
def logits(probe: LinearProbe, x_ND: jax.Array) -> jax.Array:
    """Return logits [N, C]."""
    return ((x_ND - probe.mean_D) / probe.deviation_D) @ probe.W_DC + probe.b_C


def parameters(probe: LinearProbe) -> int:
    """Return the number of parameters."""
    return probe.W_DC.size + probe.b_C.size


def _moments(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means and standard deviations [D]; the deviation of a constant feature is set to 1."""
    deviation_D = x_ND.std(0, dtype=np.float64)
    return x_ND.mean(0), np.where(deviation_D > 1e-8, deviation_D, 1).astype(np.float32)
