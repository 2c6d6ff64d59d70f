"""What the first page says of all latents together."""

import typing

import numpy as np
import pyarrow.compute

from revelio_jax.interpret.latents.results import Results
from revelio_jax.interpret.report.material import MEASURES, ReportData, name_of
from revelio_jax.interpret.report.scripts import number

DENSITY_EDGES = np.linspace(-8, 0, 33)  # log10 of the share of rows that a latent fires on
PURITY_EDGES = np.linspace(0, 1, 21).round(2)
LISTED = 8  # latents that are named on it


def write(material: ReportData, others: tuple[Results, ...]) -> dict[str, typing.Any]:
    """Headline numbers, histograms, purity by site and stratum, and a few latents worth opening."""
    results = material.results
    return {
        "numbers": numbers(results) | {"tagged": len(material.tags)},
        "density": density(results),
        "purity": [_purity(label, [results, *others]) for label in material.labels],
        "scatter": [_scatter(material, label) for label in material.labels],
        "listed": _listed(material),
    }


def numbers(results: Results) -> dict[str, typing.Any]:
    """Of a run: latents, those that fire, how many fire on a row, how often half of them do, and purity.

    ``purity`` is [label, mean, its interval's ends, latents, by chance]; what nobody could measure is None.
    """
    frequency = results.latents["frequency"].to_numpy()
    firing = frequency[results.latents["rows"].to_numpy() > 0]
    return {
        "latents": len(frequency),
        "firing": len(firing),
        "l0": number(frequency.sum()),
        "frequency": number(np.median(firing)) if len(firing) else None,
        "purity": [[label, *_mean(results.facts["purity"][label])] for label in results.facts["labels"]],
    }


def _mean(of_label: dict[str, typing.Any]) -> list[float | int | None]:
    measured, chance = of_label["measured"]["purity"] or {}, of_label["chance"] or {}
    mean, low, high = (number(measured.get(name)) for name in ("mean", "low", "high"))
    return [mean, low, high, measured.get("latents", 0), number(chance.get("purity"))]


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


def _purity(label: str, runs: list[Results]) -> dict[str, typing.Any]:
    """A row a run, a column a stratum of the first and one for all: mean of each measure, and of how many.

    ``chance`` is what samples drawn at random would have of the first, as a row.
    """
    facts, column = runs[0].facts, runs[0].facts["stratum"]["column"]
    alike = [run for run in runs if run.facts["stratum"]["column"] == column]
    strata = list(dict.fromkeys(str(value) for run in alike for value in run.facts["stratum"]["values"]))
    of_label = facts["purity"][label]
    by_chance = dict(zip(map(str, facts["stratum"]["values"]), of_label["chance_of_strata"], strict=True))
    return {
        "label": label,
        "classes": of_label["classes"],
        "strongest": of_label["strongest"],
        "strata": strata,
        "runs": [
            {
                "name": name_of(run),
                "site": run.facts["site"],
                "cells": [_cell(run.strata, label, stratum) for stratum in strata if run in alike]
                + [[None] * len(MEASURES) + [0]] * (0 if run in alike else len(strata))
                + [_cell(run.latents, label)],
            }
            for run in runs
            if label in run.facts["labels"]
        ],
        "chance": [
            [number((chance or {}).get(measure)) for measure in MEASURES]
            for chance in [*map(by_chance.get, strata), of_label["chance"]]
        ],
    }


def _cell(table: typing.Any, label: str, stratum: str | None = None) -> list[float | int | None]:
    if stratum is not None:
        table = table.filter(pyarrow.compute.equal(table["stratum"], stratum))
    measured = [_known(table, f"{label}.{measure}") for measure in MEASURES]
    return [*(number(values.mean()) if len(values) else None for values in measured), len(measured[0])]


def _scatter(material: ReportData, label: str) -> dict[str, typing.Any]:
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


def _listed(material: ReportData) -> list[dict[str, typing.Any]]:
    """The most frequent latents; and the purest of each label, of those the most frequent."""
    lists = []
    frequency = np.where(material.fires, material.columns["frequency"], -1.0)
    rows = [
        [int(latent), material.named(int(latent)), number(frequency[latent]), None]
        for latent in np.argsort(-frequency, kind="stable")[:LISTED]
        if frequency[latent] > 0
    ]
    lists.append({"by": "frequency", "label": "", "latents": rows})
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
    return lists


def _known(table: typing.Any, name: str) -> np.ndarray:
    """The values of a column that are there, rounded, so that a share such as 0.7 lies on its edge."""
    return table[name].drop_null().to_numpy().astype(np.float64).round(4)
