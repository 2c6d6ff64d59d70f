"""What every latent of an SAE fires on: one pass over the store, in bounded memory.

    python -m revelio_jax.interpret --config configs/mini_sd.py
    python -m revelio_jax.interpret --config configs/mini_sd.py --config.interpret.sae=neurons

Writes runs/<name>/latents: of each latent how often it fires and how strongly, its strongest samples with
positions and maps, weaker ones, how pure they are in the samples' labels, and its neighbours; then the pages
that show it, runs/<name>/report/index.html. With neurons each coordinate of the activations is a latent, and
the folders are runs/<name>/neurons and neurons_report. What is there already for the same store, SAE and
fields is not made again.

    python -m revelio_jax.interpret.granularity runs/a runs/b

draws the purity of several runs over timesteps.
"""

import contextlib
import pathlib
import time
import typing
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from revelio_jax.cli import parse
from revelio_jax.config import Config, InterpretConfig
from revelio_jax.errors import InputError, require
from revelio_jax.interpret.latents import dictionary, layout, neighbors, purity, results, stream, tables
from revelio_jax.interpret.latents.collection import Collection
from revelio_jax.interpret.latents.dictionary import NEURONS, Dictionary
from revelio_jax.interpret.latents.layout import Cells, Strata
from revelio_jax.interpret.latents.neighbors import RowSample
from revelio_jax.interpret.latents.purity import Label
from revelio_jax.interpret.latents.results import Results
from revelio_jax.interpret.latents.stream import CodeBatch
from revelio_jax.store import SiteReader, Store

FLAGS = {"again": (False, "also where results of the same store, SAE and fields are there")}
# Fields of config.interpret that decide the results.
FIELDS = ("top", "weaker", "neighbors", "coactivation_rows", "cells", "stratum", "labels", "random_samples")


def interpret(config: Config, again: bool = False) -> tuple[Results, bool]:
    """Read the store once and write what is found; returns it, and whether it is new.

    Raises InputError before anything is read where something does not fit.
    """
    options = config.interpret
    store, site, latents = opened(config)
    folder = results.folder_of(config.run, options.sae)
    facts = _identity(options, store, site, latents)
    if not again and (found := _found(folder, facts)):
        # Store and SAE may have moved since.
        return results.renewed(found, facts | _of_store(config, store)), False
    samples = store.table()
    labels = purity.read_labels(samples, options.labels)
    positions, timesteps = layout.survey(site)
    strata = layout.make_strata(options.stratum, samples, timesteps)
    cells = layout.make_cells(site.name, store, positions, options.cells)
    tokens = layout.token_column(site.name, samples.column_names)
    del samples  # prompts and tokens take more room than labels
    results.begin(folder)  # what cannot be written is known before all is read

    started = time.perf_counter()
    collection, sampled = read(config, store, site, latents, strata, cells)
    facts |= {"seconds": time.perf_counter() - started}
    words = store.table()[tokens].combine_chunks() if tokens else None
    made = tables.make(collection, labels, words, options.top, _neighbours(options, latents, sampled))
    facts |= _of_store(config, store) | {
        "timesteps": [timestep for timestep in timesteps if timestep >= 0],
        "d": site.d,
        "latents": latents.latents,
        "k": latents.k,
        "rows": collection.rows,
        "samples": collection.seen,
        "kind": "image" if layout.is_image(site.name) else "text",
        "tokens": tokens,
        "positions": positions,
        "grid": cells.grid,
        "cells": cells.shape,
        "stratum": {"column": strata.column, "values": list(strata.names)},
        "labels": [label.name for label in labels],
        "purity": {label.name: _purity(label, store, site, strata, made, options.top) for label in labels},
        "top": options.top,
        "weaker": options.weaker,
        "neighbors": options.neighbors,
        "histogram_log2_edges": collection.edges.tolist(),
    }
    return results.save(folder, facts, made.tables, made.arrays), True


def opened(config: Config) -> tuple[Store, SiteReader, Dictionary]:
    """The store, its site and the latents that config names. Raises InputError where they do not fit."""
    run, sae = config.run, config.interpret.sae
    if not run:
        raise InputError("config.run is empty; it names the folder of the run, as runs/mini_sd")
    if pathlib.Path(run).exists() and not pathlib.Path(run).is_dir():
        raise InputError(f"config.run is {run!r}, which is no folder")
    if sae == NEURONS:
        store, site = stream.open_site(config)
        return store, site, dictionary.neurons(site)
    latents = dictionary.load(sae or str(pathlib.Path(run, "export")))
    store, site = stream.open_site(config)
    dictionary.check(latents, store, site)
    return store, site, latents


def read(
    config: Config, store: Store, site: SiteReader, latents: Dictionary, strata: Strata, cells: Cells
) -> tuple[Collection, RowSample]:
    """Read all rows, encode them, and keep what is kept of them."""
    options = config.interpret
    scale = latents.gain * float(np.sqrt(site.variance.sum()))
    drawn = _drawn(store, site, options.random_samples)
    collection = Collection(latents.latents, options.top, options.weaker, scale, cells, strata, drawn)
    sampled = RowSample(options.coactivation_rows if options.neighbors else 0, site.rows)
    with tqdm(total=site.rows, desc="interpret", unit="row", unit_scale=True, dynamic_ncols=True) as bar:
        for part in stream.whole_samples(encoded(config, site, latents)):
            collection.add(part)
            sampled.add(part)
            bar.update(len(part.sample_N))
    return collection, sampled


def encoded(config: Config, site: SiteReader, latents: Dictionary) -> Iterator[CodeBatch]:
    """The codes of all rows in order; the next batch is computed while the caller works on one."""
    encode = dictionary.make_encode(
        latents, stream.most_rows(site, config.interpret.batch_size), config.sae.encode_chunk
    )
    before = None
    with contextlib.closing(stream.batches(site, config.interpret.batch_size)) as batches:
        for batch in batches:
            started = batch, encode(batch.x_ND)
            if before:
                yield stream.compact(before[0], *before[1]())
            before = started
        yield stream.compact(before[0], *before[1]())


def _drawn(store: Store, site: SiteReader, count: int) -> np.ndarray:
    """Numbers of samples, rising, drawn uniformly from those that have rows, at most ``count``."""
    skipped = store.manifest["sites"][site.name].get("skipped", [])
    there = np.setdiff1d(np.arange(store.manifest["samples"]), skipped)
    return np.sort(np.random.default_rng(0).choice(there, min(count, len(there)), replace=False))


def _identity(options: InterpretConfig, store: Store, site: SiteReader, latents: Dictionary) -> dict[str, typing.Any]:
    """Facts that decide the results."""
    return {
        "site": site.name,
        "store": {"location": store.location, "fingerprint": store.fingerprint},
        "sae": {
            "folder": latents.folder,
            "sha256": latents.sha256,
            "architecture": latents.architecture,
        },
        "fields": {
            name: list(value) if isinstance(value := getattr(options, name), tuple) else value for name in FIELDS
        },
    }


def _found(folder: pathlib.Path, facts: dict[str, typing.Any]) -> Results | None:
    """The results that are there, where they are those that would be made."""
    try:
        found = results.load(folder)
    except InputError:
        return None

    def decisive(facts):
        return [
            facts.get("site"),
            facts.get("store", {}).get("fingerprint"),
            facts.get("sae", {}).get("sha256"),
            facts.get("fields"),
        ]

    return found if decisive(found.facts) == decisive(facts) else None


def _of_store(config: Config, store: Store) -> dict[str, typing.Any]:
    """Facts of the model and of what the store was made from."""
    extract, model = store.manifest.get("extract", {}), store.manifest.get("model", {})
    images = f"{store.location.rstrip('/')}/images" if extract.get("save_images") else ""
    if "images" in store.manifest.get("input", {}):
        images = config.extract.images
    return {
        "name": pathlib.Path(config.run).absolute().name,
        "model": model.get("id", config.model.id),
        "family": model.get("family", config.model.family),
        "mode": extract.get("mode", "text"),
        "images": images,
    }


def _neighbours(options: InterpretConfig, latents: Dictionary, sampled: RowSample) -> dict[str, np.ndarray]:
    shape = latents.latents, options.neighbors
    nearest = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)  # neurons are at right angles
    if latents.W_dec_FD is not None:
        nearest = neighbors.nearest(latents.W_dec_FD, options.neighbors)
    coactive = neighbors.coactive(sampled.codes(latents.latents), options.neighbors)
    names = "nearest", "nearest_cosine", "coactive", "coactive_score"
    return dict(zip(names, nearest + coactive, strict=True))


def _purity(
    label: Label, store: Store, site: SiteReader, strata: Strata, made: tables.Tables, top: int
) -> dict[str, typing.Any]:
    """Means over latents, and what samples at random would have."""
    samples = _drawn(store, site, store.manifest["samples"])
    expected = purity.chance(label, samples, top)
    of_strata = [expected] * len(strata.names)
    if strata.of_sample is not None:
        of_strata = [
            purity.chance(label, samples[strata.of_sample[samples] == i], top) for i in range(len(strata.names))
        ]
    columns = made.tables["latents"]
    return {
        "classes": len(label.classes),
        "samples": int((label.of_sample[samples] >= 0).sum()),
        "strongest": min(purity.STRONGEST, top),
        "measured": {name: purity.interval(columns[f"{label.name}.{name}"].to_numpy()) for name in purity.MEASURES},
        "chance": expected,
        "chance_of_strata": of_strata,
    }


def summary(found: Results) -> str:
    """The results in a few lines."""
    facts, rows = found.facts, found.latents["rows"].to_numpy()
    lines = [
        f"{facts['name']}, {facts['site']}: {facts['rows']:,} rows of {facts['samples']:,} samples in "
        f"{facts['seconds']:.1f} s, {facts['rows'] / facts['seconds']:,.0f} rows a second",
        f"latents {facts['latents']:,}, dead on these rows {(rows == 0).mean():.1%}; "
        f"on a row fire {rows.sum() / facts['rows']:.1f}",
    ]
    for label, measured in facts["purity"].items():
        of, chance = measured["measured"], measured["chance"]
        if not of["purity"]:
            lines.append(f"{label}: no latent fires on enough samples that have it")
            continue
        shown = ", ".join(
            f"{name} {of[name]['mean']:.2f} ({of[name]['low']:.2f}-{of[name]['high']:.2f}), "
            f"by chance {chance[name]:.2f}"
            for name in ("purity", "entropy", "sigma")
        )
        lines.append(f"{label}, {measured['classes']} classes, {of['purity']['latents']:,} latents: {shown}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.interpret", *argv], __doc__, **FLAGS)
    found, is_new = interpret(config, flags["again"])
    if not is_new:
        print(f"{found.folder} has the results of this store, SAE and fields; --again makes them again")
    print(summary(found))
    print(f"results: {found.folder}", flush=True)
    require("PIL", "extract", "the report")
    from revelio_jax.interpret import report  # not before: with it comes what reads pictures

    print(f"report: {report.write(config, found) / 'index.html'}")
