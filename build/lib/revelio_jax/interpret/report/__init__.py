"""The report: a static site of what every latent means, in runs/<name>/report/.

It opens from disk and from any web server. ``site/`` has the pages; beside them, ``data/`` holds what they
show as scripts (see :mod:`.scripts`), each read when it is first needed, and ``thumbnails/`` the pictures.
"""

import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents.results import Results, store_of
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
from revelio_jax.interpret.report.material import ReportData, name_of, report_of
from revelio_jax.interpret.sample_images import ImageReader, open_images
from revelio_jax.store import Store

SITE = pathlib.Path(__file__).parent / "site"
# Of the results' facts, those that every page may need.
SHOWN = (
    "site", "model", "family", "mode", "timesteps", "store", "sae", "d", "latents", "k", "rows",
    "samples", "kind", "positions", "grid", "cells", "stratum", "labels", "top", "histogram_log2_edges",
)  # fmt: skip


def write(config: Config, results: Results, compare: Sequence[Results] = ()) -> pathlib.Path:
    """Write the report of a run, whole or not at all; returns its folder. What was there is replaced.

    ``compare`` are results of other runs, which are set beside this one. Raises InputError, before anything
    is written, where the store or its pictures are not those that the results were made of, or an autoencoder
    to compare with is gone; and where the report cannot be written.
    """
    run = pathlib.Path(config.run)
    folder = report_of(run, results)
    part, old = (folder.with_name(folder.name + suffix) for suffix in (".part", ".old"))
    store = store_of(results)
    for one in (results, *compare) if compare else ():
        matches.check(one)
    pictures = open_images(store, config.extract) if results.facts["kind"] == "image" else None
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        shutil.copytree(SITE, part)
        _fill(part, folder, config, results, compare, store, pictures)
        if folder.exists():
            os.rename(folder, old)
        os.rename(part, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _fill(
    part: pathlib.Path,
    folder: pathlib.Path,
    config: Config,
    results: Results,
    compare: Sequence[Results],
    store: Store,
    pictures: ImageReader | None,
) -> None:
    """Write data and thumbnails into ``part``, which will be ``folder``."""
    ours, others = ReportData(results, store), [ReportData(other, store) for other in compare]
    size = None
    if pictures:
        same = [other for other in others if _fingerprint(other.results) == store.fingerprint]
        wanted = set(ours.kept.tolist()).union(*(m for other in same for m in other.best.values()))
        drawn, size = thumbnails.draw(
            part, sorted(wanted), pictures, config.interpret.thumbnail, store.fingerprint, folder
        )
        ours = dataclasses.replace(ours, drawn=drawn)
        others = [dataclasses.replace(o, drawn=drawn) if o in same else o for o in others]

    facts = {name: results.facts[name] for name in SHOWN} | {
        "name": name_of(results),
        "made": datetime.date.today().isoformat(),
        "version": importlib.metadata.version("revelio_jax"),
        "picture": size,
        "firing": scripts.packed(np.packbits(ours.fires, bitorder="little")),
        "tagged": bool(ours.tags),
        "columns": table.columns(ours),
        "chunk": {"rows": table.ROWS, "search": table.INDEXED, "samples": texts.write(part, ours)},
    }
    facts["chunk"]["pages"] = pages.write(part, ours)
    table.write(part, ours)
    facts["compare"] = [comparison.write(part, i, ours, other, folder) for i, other in enumerate(others)]
    scripts.write(part, "overview", overview.write(ours, tuple(compare)))
    scripts.write(part, "facts", facts)


def _fingerprint(results: Results) -> str:
    return results.facts["store"]["fingerprint"]
