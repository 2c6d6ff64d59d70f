"""The table of latents: rows in chunks, columns for sorting and filtering, an index for searching."""

import pathlib
import typing

import numpy as np

from revelio_jax.interpret.report import scripts
from revelio_jax.interpret.report.material import ReportData
from revelio_jax.interpret.report.scripts import number

ROWS = 64  # of a chunk: where the table is sorted, each row that is seen may be of another one
INDEXED = 4096  # latents of a piece of the index
PLAIN = ("frequency", "mean", "max", "spread", "samples")


def columns(material: ReportData) -> list[str]:
    """Names of the columns that the table sorts by, beside the latent's number."""
    return [*PLAIN, *(f"{label}.purity" for label in material.labels)]


def write(report: pathlib.Path, material: ReportData) -> None:
    """Write ``data/rows/N.js``, ``data/columns/N.js`` and ``data/search/N.js``.

    A row is [words, tag, pictures, values of :func:`columns`, majority of each label]. A column is packed
    float32 [F], NaN where a latent has no value. The index has a line a latent, of words, tag and classes.
    """
    names = columns(material)
    values = np.stack([material.columns[name] for name in names], 1)
    classes = [material.majority[label] for label in material.labels]
    for index, start in enumerate(range(0, material.latents, ROWS)):
        stop = min(start + ROWS, material.latents)
        rows = [
            [*material.named(latent), [number(v) for v in values[latent]], [c[latent] for c in classes]]
            for latent in range(start, stop)
        ]
        scripts.write(report, f"rows/{index}", rows)
    for index in range(len(names)):
        scripts.write(report, f"columns/{index}", scripts.packed(values[:, index].astype(np.float32)))
    for index, start in enumerate(range(0, material.latents, INDEXED)):
        lines = [_line(material, latent) for latent in range(start, min(start + INDEXED, material.latents))]
        scripts.write(report, f"search/{index}", scripts.packed("\n".join(lines).encode()))


def _line(material: ReportData, latent: int) -> str:
    parts: list[typing.Any] = [material.words[latent], *material.tags.get(latent, ["", ""])[:2]]
    parts += [material.majority[label][latent] for label in material.labels]
    return " ".join(" ".join(str(part) for part in parts if part).split()).lower()
