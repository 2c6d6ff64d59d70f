"""Metrics of a run: metrics.jsonl, the progress bar, and the stop on a non-finite loss.

TensorBoard and wandb (trackers.py) receive the same lines.
"""

import json
import math
import os
import pathlib
import resource
import sys
import typing
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from revelio_jax.config import TrainConfig
from revelio_jax.files import write_text
from revelio_jax.training import processes

FIELDS = (
    "step", "loss", "fvu", "l0", "dead_fraction", "aux_loss", "lr", "grad_norm",
    "coverage", "entropy", "rows_per_s", "step_s", "data_wait_s", "rss_gib",
)  # fmt: skip


class NotFinite(ArithmeticError):
    """The loss or the gradient of a step is not finite."""

    def __init__(self, step: int, loss: float, grad_norm: float):
        super().__init__(f"step {step}: loss is {loss}, gradient norm is {grad_norm}")
        self.step, self.loss, self.grad_norm = step, loss, grad_norm


class Sink(typing.Protocol):
    """A receiver of the lines of metrics.jsonl."""

    def add(self, line: dict[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


class Log:
    """A context manager that writes metrics.jsonl after step ``start`` and shows a progress bar on stderr.

    Only the first process writes. Incomplete lines, and lines of steps after ``start`` from an earlier attempt, are
    removed. Every line is also added to ``sinks``. ``bar`` False hides the progress bar.
    """

    def __init__(
        self,
        path: pathlib.Path,
        start: int,
        train: TrainConfig,
        every: int,
        sinks: Sequence[Sink] = (),
        bar: bool = True,
    ):
        first = processes.is_first()
        if first:
            truncate(path, start)
        self._sinks = sinks
        self._file = (path if first else pathlib.Path(os.devnull)).open("a")
        self._bar = tqdm(total=train.steps, initial=start, unit="step", dynamic_ncols=True, disable=not (first and bar))
        self._train, self._every = train, every
        self._count, self._seconds, self._waited = 0, 0.0, 0.0

    def add(
        self, step: int, metrics: Mapping[str, np.ndarray | float], step_s: float, wait_s: float
    ) -> dict[str, float]:
        """Count a step and return its metrics; ``step_s`` is its time, ``wait_s`` the time that it waited for its rows.

        Write a line every ``every`` steps and after the last step. Its times are means since the previous
        line. ``metrics`` of a step that :func:`is_logged` must have all other FIELDS. Raise NotFinite if the
        loss or the gradient norm is not finite.
        """
        values = {name: float(value) for name, value in metrics.items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise NotFinite(step, values["loss"], values["grad_norm"])
        self._count += 1
        self._seconds += step_s
        self._waited += wait_s
        self._bar.update()
        if not is_logged(step, self._every, self._train.steps):
            return values
        step_s = self._seconds / self._count
        line = values | {
            "step": step,
            "rows_per_s": self._train.batch_size / step_s,
            "step_s": step_s,
            "data_wait_s": self._waited / self._count,
            "rss_gib": peak_rss_gib(),
        }
        self._count, self._seconds, self._waited = 0, 0.0, 0.0
        line = {name: line[name] for name in FIELDS}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.add(line)
        self._bar.set_postfix_str(
            f"loss {line['loss']:.4f}, FVU {line['fvu']:.4f}, L0 {line['l0']:.1f}, "
            f"dead {line['dead_fraction']:.1%}, {line['rows_per_s']:,.0f} rows/s"
        )
        return values

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._bar.close()
        self._file.close()
        for sink in self._sinks:
            sink.close(failed=kind is not None)


def is_logged(step: int, every: int, steps: int) -> bool:
    """Return whether metrics.jsonl has a line for a step."""
    return step % every == 0 or step == steps


def truncate(path: pathlib.Path, step: int) -> None:
    """Remove incomplete lines and lines of steps after ``step``."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    write_text(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))


def peak_rss_gib() -> float:
    """Return the peak resident memory of this process in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # macOS counts bytes, others KiB
