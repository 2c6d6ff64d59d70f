"""The training loop that single runs and grids share."""

import concurrent.futures
import contextlib
import dataclasses
import time
import typing
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

import jax

from revelio_jax.config import Config
from revelio_jax.training import coverage, dispatch, metrics, processes
from revelio_jax.training.feeds import Feed
from revelio_jax.training.loader import RowStream

T = typing.TypeVar("T")


@dataclasses.dataclass(frozen=True)
class StepResult(typing.Generic[T]):
    """The result of a step.

    ``metrics`` are on the host. ``coverage`` has the shuffling metrics of each row stream, empty if the step is not
    logged. ``step_s`` is the time since the result before, and ``wait_s`` the time that the step waited for its rows;
    both are means over the steps of a dispatch. ``state`` is the state after the step if a checkpoint is due, otherwise
    None.
    """

    step: int
    metrics: typing.Any
    coverage: Sequence[dict[str, float]]
    step_s: float
    wait_s: float
    state: T | None


class _Running(typing.NamedTuple, typing.Generic[T]):
    """Steps that the devices may still be computing."""

    steps: range
    metrics: typing.Any
    coverage: Mapping[int, Sequence[concurrent.futures.Future[dict[str, float]]]]
    wait_s: float
    state: T | None


def run_steps(
    train_step: Callable[..., tuple[T, typing.Any]],
    state: T,
    streams: Sequence[RowStream],
    feeds: Sequence[Feed],
    count: int,
    start: int,
    config: Config,
) -> Generator[StepResult[T], None, None]:
    """Yield the result of every step from ``start`` + 1 to config.train.steps, one dispatch behind the devices.

    ``train_step(state, *batches) -> (state, metrics)`` runs the steps of a dispatch, at most ``count``, as
    :func:`dispatch.make_dispatch` returns it. ``feeds`` yield the rows of ``streams``. The next dispatch starts before
    results are yielded, so the devices never wait for a reader of metrics. A result with a checkpoint is yielded before
    the next dispatch, which would consume its state. After SIGTERM, the last result has a checkpoint. Close the
    generator to stop the threads that read rows.
    """
    train, every = config.train, config.logging.every
    since, nothing = time.perf_counter(), [{} for _ in streams]
    readers = [coverage.reader(stream.mixture) for stream in streams]

    def results(running: _Running[T]) -> Iterator[StepResult[T]]:
        nonlocal since
        values = jax.device_get(running.metrics)  # waits for the devices
        before, since = since, time.perf_counter()
        for i, step in enumerate(running.steps):
            yield StepResult(
                step,
                jax.tree.map(lambda value, i=i: value[i], values) if count > 1 else values,
                [future.result() for future in running.coverage[step]] if step in running.coverage else nothing,
                (since - before) / len(running.steps),
                running.wait_s / len(running.steps),
                running.state if step == running.steps[-1] else None,
            )

    with contextlib.ExitStack() as stack:
        inputs = [
            stack.enter_context(contextlib.closing(feed(start, dispatch.spans(start, count, train)))) for feed in feeds
        ]
        # A thread, because reading the samples of a batch can take longer than a dispatch.
        measurer = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        is_stopped = stack.enter_context(processes.sigterm())
        previous = None
        for number, span in enumerate(dispatch.spans(start, count, train), 1):
            waiting_since = time.perf_counter()
            try:
                batches = [next(rows) for rows in inputs]
            except processes.Stopped:  # rows of a live run may take minutes
                if previous:
                    yield from results(previous._replace(state=state))
                return
            wait_s = time.perf_counter() - waiting_since
            state, step_metrics = train_step(state, *batches)
            shuffling = {
                step: [
                    measurer.submit(coverage.measure, *stream, step - 1, read)
                    for stream, read in zip(streams, readers, strict=True)
                ]
                for step in span
                if metrics.is_logged(step, every, train.steps)
            }
            if previous:
                yield from results(previous)
            stop, last = is_stopped(number), span[-1]
            saves = dispatch.is_planned(last, train) or stop
            previous = _Running(span, step_metrics, shuffling, wait_s, state if saves else None)
            if saves:
                yield from results(previous)
                previous = None
            if stop:
                return
