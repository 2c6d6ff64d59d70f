"""Diff-C, Revelio's classifier on maps of frozen activations (arXiv 2411.16725), in Flax.

Layers: batch norm without parameters; a 3 x 3 convolution to ``width`` channels and three more with stride 2, each
followed by batch norm, ReLU and dropout; the mean over the map; a linear layer. Training: AdamW at 1e-4 with cosine
decay, batches of 16, 30 epochs. The paper does not state the dropout rate; here it is DROPOUT.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

WIDTH, STRIDED, DROPOUT = 1024, 3, 0.1
RATE, BATCH, EPOCHS = 1e-4, 16, 30


class DiffC(nnx.Module):
    """A classifier that returns logits [N, classes] for maps [N, height, width, channels]."""

    def __init__(self, channels: int, classes: int, width: int, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(channels, use_bias=False, use_scale=False, rngs=rngs)
        input_channels = [channels] + [width] * STRIDED
        self.convolutions = nnx.List(
            nnx.Conv(inputs, width, (3, 3), strides=2 if i else 1, rngs=rngs) for i, inputs in enumerate(input_channels)
        )
        self.norms = nnx.List(nnx.BatchNorm(width, rngs=rngs) for _ in range(STRIDED + 1))
        self.dropout = nnx.Dropout(DROPOUT, rngs=rngs)
        self.linear = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x_NHWC: jax.Array | np.ndarray) -> jax.Array:
        x_NHWC = self.norm(x_NHWC)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x_NHWC = self.dropout(nnx.relu(norm(convolution(x_NHWC))))
        return self.linear(x_NHWC.mean((1, 2)))


def train(
    maps_NHWC: np.ndarray, class_N: np.ndarray, classes: int, width: int, epochs: int, rate: float, seed: int
) -> DiffC:
    """Train a classifier on N maps, float32 [N, height, width, channels]; deterministic for a given seed."""
    model = DiffC(maps_NHWC.shape[-1], classes, width, nnx.Rngs(seed))
    batch = min(BATCH, len(maps_NHWC))
    steps = len(maps_NHWC) // batch
    adamw = optax.adamw(optax.cosine_decay_schedule(rate, epochs * steps))
    adam = nnx.Optimizer(model, adamw, wrt=nnx.Param)
    random = np.random.default_rng(seed)
    model.train()
    for _ in range(epochs):
        order = random.permutation(len(maps_NHWC))[: steps * batch].reshape(steps, batch)
        for batch_B in order:
            _step(model, adam, maps_NHWC[batch_B], class_N[batch_B])
    model.eval()
    jax.block_until_ready(nnx.state(model))  # otherwise the caller's timing would include the end of training
    return model


@nnx.jit
def _step(model: DiffC, adam: nnx.Optimizer, x_NHWC: jax.Array | np.ndarray, class_N: jax.Array | np.ndarray) -> None:
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x_NHWC), class_N).mean()

    adam.update(model, nnx.grad(loss)(model))


@nnx.jit
def logits(model: DiffC, x_NHWC: jax.Array | np.ndarray) -> jax.Array:
    """Return logits [N, classes]. The model must be in evaluation mode."""
    return model(x_NHWC)


def parameters(model: DiffC) -> int:
    """Return the number of parameters."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
