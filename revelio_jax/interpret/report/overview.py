"""What the first page says of all latents together."""

import typing

import numpy as np
import pyarrow.compute

from revelio_jax.interpret.report.material import MEASURES, Material
from revelio_jax.interpret.report.scripts import number
from revelio_jax.interpret.results import Results

DENSITY_EDGES = np.linspace(-8, 0, 33)  # log10 of the share of rows that a latent fires on
PURITY_EDGES = np.linspace(0, 1, 21).round(2)
LISTED = 8  # latents that are named on it


def write(material: Material, others: tuple[Results, ...]) -> dict[str, typing.Any]:
    """Headline numbers, histograms, purity by site and stratum, and a few latents worth opening."""
    results = material.results
    return {
        "numbers": numbers(results) | {"tagged": len(material.tags)},
        "density": density(results),
        "purity": [_purity(label, [results, *others], material) for label in material.labels],
        "scatter": [_scatter(material, label) for label in material.labels],
        "listed": _listed(material),
    }


def numbers(results: Results) -> dict[str, typing.Any]:
    """Of a run: latents, those that fire, how many fire on a row, and how often a latent does."""
    frequency = results.latents["frequency"].to_numpy()
    firing = frequency[results.latents["rows"].to_numpy() > 0]
    medians = {}
    for label in results.facts["labels"]:
        known = _known(results.latents, f"{label}.purity")
        medians[label] = [number(np.median(known)) if len(known) else None, len(known)]
    return {
        "latents": len(frequency),
        "firing": len(firing),
        "l0": number(frequency.sum()),
        "frequency": number(np.median(firing)) if len(firing) else None,
        "purity": [[label, *median] for label, median in medians.items()],
    }


def density(results: Results) -> dict[str, typing.Any]:
    """How many latents fire on which share of the rows: log10 edges and counts."""
    frequency = results.latents["frequency"].to_numpy()
    counts, _ = np.histogram(
        np.log10(frequency[frequency > 0]).clip(DENSITY_EDGES[0], DENSITY_EDGES[-1]), DENSITY_EDGES
    )
    return {"edges": DENSITY_EDGES.tolist(), "counts": counts.tolist()}


def purities(results: Results, label: str) -> dict[str, typing.Any]:
    """How many latents have which purity of a label."""
    counts, _ = np.histogram(_known(results.latents, f"{label}.purity"), PURITY_EDGES)
    return {"label": label, "edges": PURITY_EDGES.tolist(), "counts": counts.tolist()}


def _purity(label: str, runs: list[Results], material: Material) -> dict[str, typing.Any]:
    """A row a run, a column a stratum and one for all: mean of each measure, and of how many latents."""
    runs = [run for run in runs if label in run.facts["labels"]]
    strata = list(dict.fromkeys(str(v) for run in runs for v in run.facts["stratum"]["values"]))
    return {
        "label": label,
        "strata": strata,
        "runs": [
            {
                "name": run.facts["name"],
                "site": run.facts["site"],
                "cells": [
                    *(_cell(run.strata, label, stratum) for stratum in strata),
                    _cell(run.latents, label),
                ],
            }
            for run in runs
        ],
        "classes": _classes(material, label),
        "distribution": purities(material.results, label),
    }


def _cell(table: typing.Any, label: str, stratum: str | None = None) -> list[float | int | None]:
    if stratum is not None:
        table = table.filter(pyarrow.compute.equal(table["stratum"], stratum))
    measured = [_known(table, f"{label}.{measure}") for measure in MEASURES]
    return [*(number(values.mean()) if len(values) else None for values in measured), len(measured[0])]


def _scatter(material: Material, label: str) -> dict[str, typing.Any]:
    """Latents by frequency and purity, as [frequency's bin, purity's bin, latents] where there are any."""
    purity, frequency = material.columns[f"{label}.purity"].round(4), material.columns["frequency"]
    known = np.isfinite(purity) & (frequency > 0)
    counts, _, _ = np.histogram2d(
        np.log10(frequency[known]).clip(DENSITY_EDGES[0], DENSITY_EDGES[-1]),
        purity[known],
        (DENSITY_EDGES, PURITY_EDGES),
    )
    bins = np.argwhere(counts)
    return {
        "label": label,
        "x": DENSITY_EDGES.tolist(),
        "y": PURITY_EDGES.tolist(),
        "bins": [[int(i), int(j), int(counts[i, j])] for i, j in bins],
    }


def _listed(material: Material) -> list[dict[str, typing.Any]]:
    """The purest latents of each label, of those the most frequent; and the most frequent of all."""
    lists = []
    frequency = np.where(material.fires, material.columns["frequency"], -1.0)
    for label in material.labels:
        purity = material.columns[f"{label}.purity"]
        best = np.lexsort((-frequency, -np.nan_to_num(purity, nan=-1.0)))[:LISTED]
        rows = [
            [
                int(latent),
                material.named(int(latent)),
                number(purity[latent]),
                material.majority[label][latent],
            ]
            for latent in best
            if np.isfinite(purity[latent])
        ]
        lists.append({"by": "purity", "label": label, "latents": rows})
    rows = [
        [int(latent), material.named(int(latent)), number(frequency[latent]), None]
        for latent in np.argsort(-frequency, kind="stable")[:LISTED]
        if frequency[latent] > 0
    ]
    lists.append({"by": "frequency", "label": "", "latents": rows})
    return lists


def _classes(material: Material, label: str) -> int:
    table = material.store.samples_table
    return pyarrow.compute.count_distinct(table[label]).as_py() if label in table.column_names else 0


def _known(table: typing.Any, name: str) -> np.ndarray:
    """The values of a column that are there; rounded, so that shares such as 0.7 lie on an edge, not beside it."""
    return table[name].drop_null().to_numpy().astype(np.float64).round(4)
