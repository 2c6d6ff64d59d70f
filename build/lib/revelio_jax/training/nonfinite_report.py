"""What is said and kept when a loss is not finite: the step, the last good checkpoint, the rows.

Which rows a step saw is arithmetic (see data.py), so they are looked up only now.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from revelio_jax.store.layout import INDEX_ARRAYS
from revelio_jax.training import checkpoints, loader, processes
from revelio_jax.training.metrics import NotFinite
from revelio_jax.training.mixture import Mixture

SHOWN = 3  # rows named in the message


@contextlib.contextmanager
def explained(run: pathlib.Path, mixture: Mixture, order: loader.Order) -> Iterator[None]:
    """End the process with one line on stderr and status 1 on NotFinite, after writing nonfinite.json.

    To be entered before the checkpoints' manager, which finishes the save that is under way.
    """
    try:
        yield
    except NotFinite as stop:
        record = describe(run, mixture, order, stop)
        path = run / "nonfinite.json"
        if processes.is_first():
            part = path.with_suffix(".part")
            part.write_text(json.dumps(record, indent=1) + "\n")
            os.replace(part, path)
        raise SystemExit(f"error: {stop}; {summary(record)}; all in {path}") from None


def describe(run: pathlib.Path, mixture: Mixture, order: loader.Order, stop: NotFinite) -> dict:
    """The contents of nonfinite.json.

    ``rows`` are array rows of the arrays in ``stores``, the one with the largest |x| first; ``samples``,
    ``positions``, ``timesteps`` and ``largest`` (that |x|) are in the same order. ``std`` is over all rows
    of the stores. Numbers that are not finite are strings, since JSON has none.
    """
    sites_B, rows_B = loader.rows_of(order, stop.step - 1)  # step 1 takes the first batch, which is number 0

    def read(name):
        values = [mixture.sites[i].arrays[name][int(row)].read() for i, row in zip(sites_B, rows_B, strict=True)]
        return np.array([value.result() for value in values])

    largest_B = np.abs(read("activations").astype(np.float32)).max(1)
    first_B = np.argsort(-np.nan_to_num(largest_B, nan=np.inf), kind="stable")
    newest = checkpoints.newest(run)
    return {
        "step": stop.step,
        "loss": _number(stop.loss),
        "grad_norm": _number(stop.grad_norm),
        "checkpoint": str(run / "checkpoints" / str(newest)) if newest else None,
        "site": mixture.name,
        "std": _number(np.sqrt(mixture.variance.mean())),
        "stores": [mixture.stores[i].location for i in sites_B[first_B]],
        "rows": rows_B[first_B].tolist(),
        **{f"{name}s": read(name)[first_B].tolist() for name in INDEX_ARRAYS},
        "largest": [_number(value) for value in largest_B[first_B]],
    }


def summary(record: dict) -> str:
    """The record in one line."""
    columns = (record[name] for name in ("rows", "samples", "largest"))
    shown = [
        f"row {row} (sample {sample}, |x| {float(largest):.4g})" for row, sample, largest in zip(*columns, strict=True)
    ][:SHOWN]
    more = len(record["rows"]) - len(shown)
    return (
        f"last good checkpoint: {record['checkpoint'] or 'none'}; the step's rows of {record['site']}, "
        f"largest |x| first: {', '.join(shown)}{f' and {more} more' if more else ''}; the standard deviation "
        f"of the store's rows is {float(record['std']):.4g}; if that is as it should be, lower "
        "config.train.learning_rate and resume"
    )


def _number(value) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))
