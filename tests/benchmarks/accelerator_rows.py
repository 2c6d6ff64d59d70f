"""Rows of the benchmark accelerator.py, one JSON line each. It imports neither JAX nor torch."""

import dataclasses
import datetime
import json
import statistics
import sys
import time
import typing
from collections.abc import Callable

BUDGET_S = 2.0  # to time one row, after its compilation
ROUNDS, MOST_CALLS = 5, 20  # a row is the median of rounds; the calls of a round are queued together


class Skipped(Exception):
    """The reason why a row has no measurement."""


class Size(typing.NamedTuple):
    """Width, latents, k and rows of a batch."""

    d: int
    n: int
    k: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes the rows {part, name, size, ms, ..., device, jax or torch, date} of one process until ``deadline``."""

    size: Size
    deadline: float  # of time.time()
    small: bool
    context: dict[str, str]  # device and version
    output: typing.TextIO

    def row(self, part: str, name: str, measure: Callable[[], dict]) -> dict:
        """Write and return the row with the fields that ``measure`` returns.

        A row without a measurement has ``skipped`` or ``error`` instead. An error does not end the benchmark.
        """
        try:
            if time.time() > self.deadline:
                raise Skipped("out of time")
            fields = measure()
        except Skipped as reason:
            fields = {"skipped": str(reason)}
        except Exception as error:
            fields = {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:300]}
        today = datetime.date.today().isoformat()
        row = {"part": part, "name": name, "size": self.size, "ms": None} | fields | self.context | {"date": today}
        print(json.dumps(row), file=self.output, flush=True)
        return row

    def guard(self, part: Callable[["Report"], None]) -> None:
        """Report the rows of a part. If its arrays cannot be made, for example for lack of memory, report the error."""
        try:
            part(self)
        except Exception as error:

            def fail(error: Exception = error) -> dict:
                raise error

            self.row("arrays", part.__name__, fail)


def start(context: dict[str, str]) -> Report:
    """Return the report of this process, whose arguments are D N K B DEADLINE [small].

    From now on, ``sys.stdout`` is the error output, because libraries print to it.
    """
    *size, deadline = sys.argv[1:6]
    output, sys.stdout = sys.stdout, sys.stderr
    return Report(Size(*map(int, size)), float(deadline), sys.argv[6:] == ["small"], context, output)


def milliseconds(run: Callable[[int], object]) -> float:
    """Return the median time of a call. ``run(count)`` queues ``count`` calls and waits for the last one."""

    def seconds(count: int) -> float:
        start = time.perf_counter()
        run(count)
        return time.perf_counter() - start

    run(1)  # allocates memory
    once = seconds(1)
    count = max(1, min(MOST_CALLS, int(BUDGET_S / ROUNDS / once)))
    rounds = max(1, min(ROUNDS, int(BUDGET_S / once / count)))
    return 1000 * statistics.median(seconds(count) / count for _ in range(rounds))
