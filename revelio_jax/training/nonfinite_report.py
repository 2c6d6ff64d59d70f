"""The report on a non-finite loss: the step, the last good checkpoint and the rows of the step.

The rows of a step follow from its number (see loader.py), so they are looked up only for this report.
"""

import contextlib
import json
import math
import pathlib
import typing
from collections.abc import Generator

import numpy as np

from revelio_jax import run_folders
from revelio_jax.files import write_text
from revelio_jax.store.layout import INDEX_ARRAYS
from revelio_jax.training import checkpoints, loader, processes
from revelio_jax.training.loader import RowStream
from revelio_jax.training.metrics import NotFinite

SHOWN = 3  # rows named in the message

Number = float | str  # non-finite numbers are strings, since JSON has no such numbers


class NonfiniteReport(typing.TypedDict):
    """The contents of nonfinite.json.

    ``stores``, ``rows``, ``samples``, ``positions``, ``timesteps`` and ``largest`` have one entry per row of
    the step, in decreasing order of the largest |x| of a row. ``rows`` are indices into the arrays of ``stores``,
    ``largest`` is the largest |x|. ``std`` is the standard deviation of all rows of the stores.
    """

    step: int
    loss: Number
    grad_norm: Number
    checkpoint: str | None
    site: str
    std: Number
    stores: list[str]
    rows: list[int]
    samples: list[int]
    positions: list[int]
    timesteps: list[int]
    largest: list[Number]


@contextlib.contextmanager
def stop_on_nonfinite(folder: pathlib.Path, stream: RowStream) -> Generator[None]:
    """On NotFinite write nonfinite.json and end the process with one line on stderr and status 1.

    Enter it before the checkpoint manager, which finishes a pending save when it exits.
    """
    try:
        yield
    except NotFinite as error:
        report = describe(folder, stream, error)
        path = folder / "nonfinite.json"
        if processes.is_first():
            write_text(path, json.dumps(report, indent=1) + "\n")
            run_folders.push(folder)
        where = run_folders.location(path)
        raise SystemExit(f"error: {error}; {summary(report)}; all rows are in {where}") from None


def describe(folder: pathlib.Path, stream: RowStream, error: NotFinite) -> NonfiniteReport:
    """Return the report on the step of ``error``."""
    mixture, order = stream
    # Step 1 takes the first batch, which has number 0.
    sites_B, rows_B = loader.rows_of(order, error.step - 1)

    def read(name: str) -> np.ndarray:
        values = [mixture.sites[i].arrays[name][int(row)].read() for i, row in zip(sites_B, rows_B, strict=True)]
        return np.array([value.result() for value in values])

    largest_B = np.abs(read("activations").astype(np.float32)).max(1)
    order_B = np.argsort(-np.nan_to_num(largest_B, nan=np.inf), kind="stable")
    sample, position, timestep = (read(name)[order_B].tolist() for name in INDEX_ARRAYS)
    newest = checkpoints.newest_step(folder)
    return {
        "step": error.step,
        "loss": _number(error.loss),
        "grad_norm": _number(error.grad_norm),
        "checkpoint": run_folders.location(folder / "checkpoints" / str(newest)) if newest else None,
        "site": mixture.name,
        "std": _number(np.sqrt(mixture.variance.mean())),
        "stores": [mixture.stores[i].location for i in sites_B[order_B]],
        "rows": rows_B[order_B].tolist(),
        "samples": sample,
        "positions": position,
        "timesteps": timestep,
        "largest": [_number(value) for value in largest_B[order_B]],
    }


def summary(report: NonfiniteReport) -> str:
    """Return the report as one line."""
    columns = report["rows"], report["samples"], report["largest"]
    shown = [
        f"row {row} (sample {sample}, |x| {float(largest):.4g})" for row, sample, largest in zip(*columns, strict=True)
    ][:SHOWN]
    more = len(report["rows"]) - len(shown)
    return (
        f"last good checkpoint: {report['checkpoint'] or 'none'}; rows of the step at {report['site']}, "
        f"largest |x| first: {', '.join(shown)}{f' and {more} more' if more else ''}; the standard deviation "
        f"of the store's rows is {float(report['std']):.4g}; if these values are expected, lower "
        "config.train.learning_rate and resume"
    )


def _number(value: float) -> Number:
    return float(value) if math.isfinite(value) else str(float(value))
