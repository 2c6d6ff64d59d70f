"""Write the report: a static site in runs/<name>/report/ that shows what each latent fires on.

It works from disk and from any web server. ``site/`` has the pages. A written report has two more folders: ``data/``
with the contents as scripts (see :mod:`.scripts`), which a page loads when it needs them, and ``thumbnails/``.
"""

import dataclasses
import datetime
import importlib.metadata
import pathlib
import shutil
import typing
from collections.abc import Sequence

import numpy as np

from revelio_jax import files
from revelio_jax.config import Config
from revelio_jax.interpret.latents.results import Results, open_store_of
from revelio_jax.interpret.report import (
    comparison,
    matches,
    overview,
    pages,
    scripts,
    table,
    texts,
    thumbnails,
)
from revelio_jax.interpret.report.report_data import ReportData, name_of, report_of
from revelio_jax.interpret.sample_images import ImageReader, open_images
from revelio_jax.store import Store

SITE = pathlib.Path(__file__).parent / "site"
# The fields of summary.json that pages use.
FACTS = (
    "site", "model", "family", "mode", "timesteps", "store", "sae", "d", "latents", "k", "rows",
    "samples", "kind", "positions", "grid", "cells", "stratum", "labels", "histogram_log2_edges",
)  # fmt: skip


def write(config: Config, results: Results, compare: Sequence[Results] = ()) -> pathlib.Path:
    """Write the report of a run in one step, replacing an old one; return its folder.

    ``compare`` are results of other runs for the page that compares SAEs. Raise InputError before anything is written
    if the store or its images have changed since the results were computed, or if the decoder of a compared SAE cannot
    be read. Raise it also if the report cannot be written.
    """
    run = pathlib.Path(config.run or results.folder.parent)
    folder = report_of(run, results)
    store = open_store_of(results)
    for compared in (results, *compare) if compare else ():
        matches.check(compared)
    images = open_images(store, config.extract) if results.summary["kind"] == "image" else None
    with files.replacing_folder(folder) as part:
        shutil.copytree(SITE, part, dirs_exist_ok=True)
        _fill(part, folder, config, results, compare, store, images)
    return folder


def _fill(
    part: pathlib.Path,
    folder: pathlib.Path,
    config: Config,
    results: Results,
    compare: Sequence[Results],
    store: Store,
    images: ImageReader | None,
) -> None:
    """Write data and thumbnails into the temporary folder ``part``, which later replaces ``folder``."""
    ours, others = ReportData(results, store), [ReportData(other, store) for other in compare]
    size = None
    if images:
        same_store = [other for other in others if other.summary["store"]["fingerprint"] == store.fingerprint]
        samples = set(ours.shown_samples.tolist())
        samples = samples.union(*(numbers for other in same_store for numbers in other.best.values()))
        with_image, size = thumbnails.write(
            part, sorted(samples), images, config.interpret.thumbnail, store.fingerprint, folder
        )
        ours = dataclasses.replace(ours, with_image=with_image)
        others = [
            dataclasses.replace(other, with_image=with_image) if other in same_store else other for other in others
        ]

    facts: dict[str, typing.Any] = {name: results.summary[name] for name in FACTS} | {
        "name": name_of(results),
        "made": datetime.date.today().isoformat(),
        "version": importlib.metadata.version("revelio_jax"),
        "image": size,
        "firing": scripts.pack(np.packbits(ours.fires, bitorder="little")),
        "tagged": bool(ours.tags),
        "columns": table.columns(ours),
        "chunk": {"rows": table.ROWS, "search": table.INDEXED, "samples": texts.write(part, ours)},
    }
    facts["chunk"]["pages"] = pages.write(part, ours)
    table.write(part, ours)
    facts["compare"] = [comparison.write(part, i, ours, other, folder) for i, other in enumerate(others)]
    scripts.write(part, "overview", overview.write(ours, tuple(compare)))
    scripts.write(part, "facts", facts)
