"""Several train steps in one call of a compiled program, a dispatch.

Starting a program costs the host about as much time as the smallest steps take on an accelerator.
"""

import typing
from collections.abc import Callable, Iterator

import jax

from revelio_jax.config import TrainConfig
from revelio_jax.sae import sharding

# A dispatch has about this many operations in the encoder product, or this many steps if that is fewer. At 780 TFLOP/s,
# the bfloat16 peak of an H100, the product then takes at least 2.5 ms, many times the cost of a dispatch.
AUTO_OPERATIONS, AUTO_STEPS = 2e12, 32


def size(train: TrainConfig, weights: int, mesh: jax.sharding.Mesh) -> int:
    """Return the number of steps per dispatch: config.train.steps_per_dispatch, or a choice if it is None.

    ``weights`` is the number of weights of the encoders that a step trains. The choice is 1 on a CPU. Elsewhere it
    divides ``checkpoint_every`` if that does not halve it, because a shorter dispatch compiles again.
    """
    if train.steps_per_dispatch:
        return train.steps_per_dispatch
    if mesh.devices.flat[0].platform == "cpu":
        return 1
    operations = 2 * train.batch_size * weights / mesh.size  # of each device
    most = max(1, min(AUTO_STEPS, int(AUTO_OPERATIONS / operations)))
    return next((count for count in range(most, most // 2, -1) if train.checkpoint_every % count == 0), most)


def is_planned(step: int, train: TrainConfig) -> bool:
    """Return whether the run has a checkpoint after ``step`` steps, also if SIGTERM does not stop it there."""
    return step % train.checkpoint_every == 0 or step == train.steps


def spans(start: int, count: int, train: TrainConfig) -> Iterator[range]:
    """Yield the steps of each dispatch after ``start`` finished steps.

    Dispatches have ``count`` steps from one checkpoint on; the last one before the next checkpoint or the end of the
    run may have fewer. Their ends do not depend on ``start``, so a resumed run repeats the dispatches of the
    uninterrupted one.
    """
    while start < train.steps:
        done = start % train.checkpoint_every  # since the checkpoint
        stop = min(train.steps, start + min(count - done % count, train.checkpoint_every - done))
        yield range(start + 1, stop + 1)
        start = stop


def make_dispatch(
    train_step: Callable[..., typing.Any],
    state: typing.Any,
    count: int,
    mesh: jax.sharding.Mesh,
    compiler_options: dict[str, str] | None = None,
) -> Callable[..., typing.Any]:
    """Return the compiled ``dispatch(state, *batches) -> (state, metrics)``, which consumes its state.

    If ``count`` is 1, it does the same as ``train_step``. Otherwise each of ``batches`` is [S, B, D] with the rows of S
    steps, and every metric has a leading axis S. The result has the shardings of ``state``. ``compiler_options`` are
    XLA's.
    """
    if count == 1 and not compiler_options:
        return train_step

    def dispatch(state: typing.Any, *batches: jax.Array) -> tuple[typing.Any, typing.Any]:
        if count == 1:
            return train_step(state, *batches)
        return jax.lax.scan(lambda state, batches: train_step(state, *batches), state, batches)

    shardings = jax.tree.map(lambda array: array.sharding, state)
    replicated = jax.NamedSharding(mesh, sharding.REPLICATED)
    out_shardings = (shardings, replicated)
    return jax.jit(dispatch, donate_argnums=0, out_shardings=out_shardings, compiler_options=compiler_options)
