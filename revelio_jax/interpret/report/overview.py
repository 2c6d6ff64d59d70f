"""Compute the data of the first page: totals over all latents."""

import typing

import numpy as np

from revelio_jax.interpret.latents.results import Results
from revelio_jax.interpret.latents.summary import LabelPurity
from revelio_jax.interpret.report.report_data import MEASURES, ReportData, name_of
from revelio_jax.interpret.report.scripts import number
from revelio_jax.store.parquet import compute

DENSITY_EDGES = np.linspace(-8, 0, 33)  # log10 of the share of rows that a latent fires on
PURITY_EDGES = np.linspace(0, 1, 21).round(2)
LISTED = 8  # latents in each list of the first page


def write(data: ReportData, others: tuple[Results, ...]) -> dict[str, typing.Any]:
    """Return the data: headline numbers, histograms, purity by hook point and stratum, lists of notable latents."""
    results = data.results
    return {
        "numbers": numbers(results) | {"tagged": len(data.tags)},
        "density": density(results),
        "purity": [_purity(label, [results, *others]) for label in data.labels],
        "scatter": [_scatter(data, label) for label in data.labels],
        "listed": _listed(data),
    }


def numbers(results: Results) -> dict[str, typing.Any]:
    """Return the headline numbers of a run: latents, firing latents, L0, their median frequency, and purity.

    ``purity`` has [label, mean, low and high end of its interval, latents, chance] per label; None means not measured.
    """
    frequency = results.latents["frequency"].to_numpy()
    firing = frequency[results.latents["rows"].to_numpy() > 0]
    return {
        "latents": len(frequency),
        "firing": len(firing),
        "l0": number(frequency.sum()),
        "frequency": number(np.median(firing)) if len(firing) else None,
        "purity": [[label, *_mean(results.summary["purity"][label])] for label in results.summary["labels"]],
    }


def _mean(of_label: LabelPurity) -> list[float | int | None]:
    measured, chance = of_label["measured"]["purity"] or {}, of_label["chance"] or {}
    mean, low, high = (number(measured.get(name)) for name in ("mean", "low", "high"))
    return [mean, low, high, measured.get("latents", 0), number(chance.get("purity"))]


def density(results: Results) -> dict[str, typing.Any]:
    """Return the histogram of firing latents by log10 of the share of rows on which they fire."""
    frequency = results.latents["frequency"].to_numpy()
    counts, _ = np.histogram(
        np.log10(frequency[frequency > 0]).clip(DENSITY_EDGES[0], DENSITY_EDGES[-1]), DENSITY_EDGES
    )
    return {"edges": DENSITY_EDGES.tolist(), "counts": counts.tolist()}


def purities(results: Results, label: str) -> dict[str, typing.Any]:
    """Return the histogram of latents by their purity for a label."""
    counts, _ = np.histogram(_known(results.latents, f"{label}.purity"), PURITY_EDGES)
    return {"label": label, "edges": PURITY_EDGES.tolist(), "counts": counts.tolist()}


def _purity(label: str, runs: list[Results]) -> dict[str, typing.Any]:
    """Return the table of purity: one row per run, one column per stratum, and a last column for all strata.

    A cell has the mean over latents of each measure, and the number of latents. ``chance`` is a row with the values
    of random samples of the first run.
    """
    summary, column = runs[0].summary, runs[0].summary["stratum"]["column"]
    alike = [run for run in runs if run.summary["stratum"]["column"] == column]
    strata = list(dict.fromkeys(str(value) for run in alike for value in run.summary["stratum"]["values"]))
    of_label = summary["purity"][label]
    by_chance = dict(zip(map(str, summary["stratum"]["values"]), of_label["chance_of_strata"], strict=True))
    return {
        "label": label,
        "classes": of_label["classes"],
        "strata": strata,
        "runs": [
            {
                "name": name_of(run),
                "site": run.summary["site"],
                "cells": [_cell(run.strata, label, stratum) for stratum in strata if run in alike]
                + [[None] * len(MEASURES) + [0]] * (0 if run in alike else len(strata))
                + [_cell(run.latents, label)],
            }
            for run in runs
            if label in run.summary["labels"]
        ],
        "chance": [
            [number((chance or {}).get(measure)) for measure in MEASURES]
            for chance in [*map(by_chance.get, strata), of_label["chance"]]
        ],
    }


def _cell(table: typing.Any, label: str, stratum: str | None = None) -> list[float | int | None]:
    if stratum is not None:
        table = table.filter(compute.equal(table["stratum"], stratum))
    measured = [_known(table, f"{label}.{measure}") for measure in MEASURES]
    return [*(number(values.mean()) if len(values) else None for values in measured), len(measured[0])]


def _scatter(data: ReportData, label: str) -> dict[str, typing.Any]:
    """Return the non-empty bins of latents by frequency and purity: [frequency bin, purity bin, latents]."""
    purity, frequency = data.columns[f"{label}.purity"].round(4), data.columns["frequency"]
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


def _listed(data: ReportData) -> list[dict[str, typing.Any]]:
    """Return the most frequent latents, and for each label the purest latents, with ties in order of frequency."""
    lists = []
    frequency = np.where(data.fires, data.columns["frequency"], -1.0)
    rows = [
        [int(latent), data.name_of_latent(int(latent)), number(frequency[latent]), None]
        for latent in np.argsort(-frequency, kind="stable")[:LISTED]
        if frequency[latent] > 0
    ]
    lists.append({"by": "frequency", "label": "", "latents": rows})
    for label in data.labels:
        purity = data.columns[f"{label}.purity"]
        best = np.lexsort((-frequency, -np.nan_to_num(purity, nan=-1.0)))[:LISTED]
        rows = [
            [
                int(latent),
                data.name_of_latent(int(latent)),
                number(purity[latent]),
                data.majority[label][latent],
            ]
            for latent in best
            if np.isfinite(purity[latent])
        ]
        lists.append({"by": "purity", "label": label, "latents": rows})
    return lists


def _known(table: typing.Any, name: str) -> np.ndarray:
    """Return the non-null values of a column, rounded so that shares, for example 0.7, fall on a bin edge."""
    return table[name].drop_null().to_numpy().astype(np.float64).round(4)
