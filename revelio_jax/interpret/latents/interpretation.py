"""Interpret the latents of a run: from its store and its SAE to the files of :mod:`.results`."""

import pathlib
import time

import numpy as np
import pyarrow
import pyarrow.types

from revelio_jax import files, run_folders
from revelio_jax.config import Config, InterpretConfig
from revelio_jax.errors import InputError
from revelio_jax.interpret.embeddings import embedding_file, process
from revelio_jax.interpret.latents import layout, masks, measured, neighbors, purity, results, store_pass, tables
from revelio_jax.interpret.latents.dictionary import Dictionary
from revelio_jax.interpret.latents.layout import Strata
from revelio_jax.interpret.latents.neighbors import CoactivationRows
from revelio_jax.interpret.latents.purity import Label
from revelio_jax.interpret.latents.results import Results
from revelio_jax.interpret.latents.summary import Identity, LabelPurity, Origin, Summary
from revelio_jax.interpret.latents.tables import ResultTables
from revelio_jax.store import SiteReader, Store

# The fields of config.interpret that affect the results.
FIELDS = ("top", "weaker", "neighbors", "coactivation_rows", "cells", "stratum", "labels", "random_samples", "masks")


def interpret(config: Config, again: bool = False) -> tuple[Results, bool]:
    """Read the store once and write the results; return them, and whether they are new.

    Existing results of the same store, SAE and fields are returned instead, unless ``again`` is set. Raise InputError
    before any row is read if the inputs do not match or the results cannot be written.
    """
    options = config.interpret
    store, site, latents = store_pass.open_inputs(config)
    folder = results.folder_of(config.run or "", options.sae)
    identity, origin = _identity(options, store, site, latents), _origin(config, store)
    if not again and (existing := _reusable(folder, identity)):
        # The store and the SAE may have been moved since then.
        return results.update_summary(existing, {**existing.summary, **identity, **origin}), False
    # Without lists: tokens take far more memory than labels.
    samples = store.table([field.name for field in store.schema if not pyarrow.types.is_nested(field.type)])
    labels = purity.read_labels(samples, options.labels)
    positions, timesteps = layout.positions_and_timesteps(site)
    strata = layout.make_strata(options.stratum, samples, timesteps)
    position_map = layout.make_map(site.name, store, positions, options.cells)
    tokens = layout.token_column(site.name, store.schema.names)
    mask_reader = None
    if options.masks:
        if not position_map.grid:
            raise InputError(
                f"{masks.FIELD} is {options.masks!r}; the positions of {site.name} in store {store.location} do not "
                "form a map"
            )
        mask_reader = masks.open_masks(options.masks, store, position_map.shape)
    del samples  # prompts take more memory than labels
    files.prepare_folder(folder)  # to fail before the pass instead of after it

    # Another process computes them; JAX must not hold the memory of the GPU by then.
    embedding_NE = process.embeddings(config, store) if options.embedder else None
    started = time.perf_counter()
    accumulator, coactivation = store_pass.accumulate(config, store, site, latents, strata, position_map, embedding_NE)
    seconds = time.perf_counter() - started
    token_lists = store.table([tokens])[tokens].combine_chunks() if tokens else None
    near = _neighbors(options, latents, coactivation)
    result_tables = tables.make_tables(accumulator, labels, token_lists, options.top, near)
    top_FM = accumulator.top.ranked().sample
    measures = measured.measure(accumulator, result_tables.arrays["profile"], top_FM, position_map, mask_reader)
    result_tables.tables["latents"] = measured.with_columns(result_tables.tables["latents"], measures)
    summary: Summary = {
        **identity,
        "seconds": seconds,
        **origin,
        "timesteps": [timestep for timestep in timesteps if timestep >= 0],
        "d": site.d,
        "latents": latents.n_latents,
        "k": latents.k,
        "rows": accumulator.rows_read,
        "samples": accumulator.samples_read,
        "kind": "image" if layout.is_image(site.name) else "text",
        "tokens": tokens,
        "positions": positions,
        "grid": position_map.grid,
        "cells": position_map.shape,
        "stratum": {"column": strata.column, "values": list(strata.names)},
        "labels": [label.name for label in labels],
        "purity": {
            label.name: _label_purity(label, store, site, strata, result_tables, options.top) for label in labels
        },
        "measures": measured.means(measures),
        "top": options.top,
        "weaker": options.weaker,
        "neighbors": options.neighbors,
        "histogram_log2_edges": accumulator.edges.tolist(),
    }
    return results.save(folder, summary, result_tables.tables, result_tables.arrays), True


def _identity(options: InterpretConfig, store: Store, site: SiteReader, latents: Dictionary) -> Identity:
    return {
        "site": site.name,
        "store": {"location": store.location, "fingerprint": store.fingerprint},
        "sae": {
            "folder": run_folders.location(pathlib.Path(latents.folder)) if latents.folder else "",
            "sha256": latents.sha256,
            "architecture": latents.architecture,
        },
        "fields": {
            name: list(value) if isinstance(value := getattr(options, name), tuple) else value for name in FIELDS
        },
        "embedder": embedding_file.fingerprint(options.embedder) if options.embedder else "",
    }


def _origin(config: Config, store: Store) -> Origin:
    extract, model = store.manifest.get("extract", {}), store.manifest.get("model", {})
    images = f"{store.location.rstrip('/')}/images" if extract.get("save_images") else ""
    if "images" in store.manifest.get("input", {}):
        images = config.extract.images or ""
    return {
        "name": pathlib.Path(config.run or "").absolute().name,
        "model": model.get("id", config.model.id),
        "family": model.get("family", config.model.family),
        "mode": extract.get("mode", "text"),
        "images": images,
    }


def _reusable(folder: pathlib.Path, identity: Identity) -> Results | None:
    """Return the existing results if their store, SAE weights and fields are the same, otherwise None."""
    try:
        existing = results.load(folder)
    except InputError:
        return None
    summary = existing.summary
    same = (
        summary.get("site") == identity["site"]
        and summary.get("store", {}).get("fingerprint") == identity["store"]["fingerprint"]
        and summary.get("sae", {}).get("sha256") == identity["sae"]["sha256"]
        and summary.get("fields") == identity["fields"]
        and summary.get("embedder") == identity["embedder"]
    )
    return existing if same else None


def _neighbors(options: InterpretConfig, latents: Dictionary, coactivation: CoactivationRows) -> dict[str, np.ndarray]:
    shape = latents.n_latents, options.neighbors
    nearest = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)  # neurons are orthogonal
    if latents.W_dec_FD is not None:
        nearest = neighbors.nearest(latents.W_dec_FD, options.neighbors)
    coactive = neighbors.coactive(coactivation.codes(latents.n_latents), options.neighbors)
    names = "nearest", "nearest_cosine", "coactive", "coactive_score"
    return dict(zip(names, nearest + coactive, strict=True))


def _label_purity(
    label: Label, store: Store, site: SiteReader, strata: Strata, result_tables: ResultTables, top: int
) -> LabelPurity:
    """Return the means over latents of a label's measures, and the expected values for random samples."""
    samples = store_pass.random_samples(store, site, store.manifest["samples"])
    expected = purity.chance(label, samples, top)
    expected_of_strata = [expected] * len(strata.names)
    if strata.of_sample is not None:
        stratum = strata.of_sample[samples]
        expected_of_strata = [purity.chance(label, samples[stratum == i], top) for i in range(len(strata.names))]
    columns = result_tables.tables["latents"]
    return {
        "classes": len(label.classes),
        "samples": int((label.of_sample[samples] >= 0).sum()),
        "strongest": min(purity.STRONGEST, top),
        "measured": {name: purity.interval(columns[f"{label.name}.{name}"].to_numpy()) for name in purity.MEASURES},
        "chance": expected,
        "chance_of_strata": expected_of_strata,
    }
