"""Write the data of the table of latents: rows in chunks, columns to sort and filter by, and a search index."""

import pathlib
import typing

import numpy as np

from revelio_jax.interpret.report import scripts
from revelio_jax.interpret.report.report_data import ReportData
from revelio_jax.interpret.report.scripts import number

ROWS = 64  # rows in a chunk; few, because in a sorted table each visible row can be in a different chunk
INDEXED = 4096  # latents in one file of the search index
PLAIN = ("frequency", "mean", "max", "spread", "samples")


def columns(data: ReportData) -> list[str]:
    """Return the names of the columns that the table can be sorted by, in addition to the latent's number."""
    return [*PLAIN, *data.summary["measures"], *(f"{label}.purity" for label in data.labels)]


def write(report: pathlib.Path, data: ReportData) -> None:
    """Write ``data/rows/N.js``, ``data/columns/N.js`` and ``data/search/N.js``.

    A row is [words, tag, samples with a thumbnail, values of :func:`columns`, majority of each label]. A column is
    packed float32 [F], NaN without a value. The search index has one line per latent: words, tag and classes.
    """
    names = columns(data)
    values = np.stack([data.columns[name] for name in names], 1)
    classes = [data.majority[label] for label in data.labels]
    for index, start in enumerate(range(0, data.latents, ROWS)):
        stop = min(start + ROWS, data.latents)
        rows = [
            [*data.name_of_latent(latent), [number(v) for v in values[latent]], [c[latent] for c in classes]]
            for latent in range(start, stop)
        ]
        scripts.write(report, f"rows/{index}", rows)
    for index in range(len(names)):
        scripts.write(report, f"columns/{index}", scripts.pack(values[:, index].astype(np.float32)))
    for index, start in enumerate(range(0, data.latents, INDEXED)):
        lines = [_line(data, latent) for latent in range(start, min(start + INDEXED, data.latents))]
        scripts.write(report, f"search/{index}", scripts.pack("\n".join(lines).encode()))


def _line(data: ReportData, latent: int) -> str:
    parts: list[typing.Any] = [data.words[latent], *data.tags.get(latent, ["", ""])[:2]]
    parts += [data.majority[label][latent] for label in data.labels]
    return " ".join(" ".join(str(part) for part in parts if part).split()).lower()
