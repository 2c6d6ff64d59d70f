"""The training loop that single runs and grids share."""

import contextlib
import dataclasses
import time
import typing
from collections.abc import Callable, Generator, Sequence

import jax

from revelio_jax.config import Config
from revelio_jax.sae import sharding
from revelio_jax.training import coverage, loader, metrics, processes
from revelio_jax.training.loader import RowStream

T = typing.TypeVar("T")


@dataclasses.dataclass(frozen=True)
class StepResult(typing.Generic[T]):
    """The result of a step that the device may still be computing.

    ``metrics`` are on the device; reading them waits for the step. ``coverage`` has the shuffling metrics of
    each row stream, empty if the step is not logged. ``wait_s`` is the time that the step waited for its rows.
    ``state`` is the state after the step if a checkpoint is due, otherwise None.
    """

    step: int
    metrics: typing.Any
    coverage: Sequence[dict[str, float]]
    wait_s: float
    state: T | None


def run_steps(
    train_step: Callable[..., tuple[T, typing.Any]],
    state: T,
    streams: Sequence[RowStream],
    lanes: Sequence[int],
    start: int,
    config: Config,
    mesh: jax.sharding.Mesh,
) -> Generator[StepResult[T], None, None]:
    """Yield the result of every step from ``start`` + 1 to config.train.steps, one step behind the device.

    ``train_step(state, *batches) -> (state, metrics)`` takes one batch [B, D] of each stream and consumes the
    state. This process reads the rows of ``lanes``. The next step is dispatched before a result is yielded, so the
    device never waits for a reader of metrics. A result with a checkpoint is yielded before the next dispatch,
    which would consume its state. After SIGTERM, the last result has a checkpoint. Close the generator to stop the
    threads that read rows.
    """
    steps, every = config.train.steps, config.logging.every
    with contextlib.ExitStack() as stack:
        batches = [stack.enter_context(contextlib.closing(loader.batches(*stream, start, lanes))) for stream in streams]
        is_stopped = stack.enter_context(processes.sigterm())
        previous = None
        for step in range(start + 1, steps + 1):
            waiting_since = time.perf_counter()
            x_SBD = [sharding.put_batch(mesh, next(rows)) for rows in batches]
            wait_s = time.perf_counter() - waiting_since
            state, step_metrics = train_step(state, *x_SBD)
            shuffling: list[dict[str, float]] = [{} for _ in streams]
            if metrics.is_logged(step, every, steps):  # while the device works
                shuffling = [coverage.measure(*stream, step - 1) for stream in streams]
            if previous:
                yield previous
            stop = is_stopped(step)
            saves = step % config.train.checkpoint_every == 0 or step == steps or stop
            previous = StepResult(step, step_metrics, shuffling, wait_s, state if saves else None)
            if saves:
                yield previous
                previous = None
            if stop:
                return
