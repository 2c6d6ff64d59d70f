"""Write the data of the page that compares this SAE with others."""

import os
import pathlib
import typing

import numpy as np

from revelio_jax.interpret.report import matches, overview, scripts
from revelio_jax.interpret.report.report_data import ReportData, name_of, report_of
from revelio_jax.interpret.report.scripts import number
from revelio_jax.interpret.report.table import ROWS

SCORES = np.linspace(0, 1, 21).round(2)


def write(report: pathlib.Path, index: int, ours: ReportData, other: ReportData, folder: pathlib.Path) -> dict:
    """Write the comparison with the other run number ``index``; return its fields that all pages use.

    ``data/compare/INDEX/rows/N.js`` has one chunk of our latents: for each latent and way to match, [matched latent,
    score] or null, and the names of the matched latents. ``columns/N.js`` has the scores of one way, as packed float32
    [F]. ``facts.js`` has the histograms. ``folder`` is the final folder of our report.
    """
    ways = [
        (name, *match)
        for name, match in (
            ("decoder", matches.by_decoder(ours.results, other.results)),
            ("samples", matches.by_samples(ours.results, other.results)),
        )
        if match
    ]
    if ours.summary["site"] != other.summary["site"]:
        ways.reverse()  # decoder rows of different hook points are in different spaces: prefer samples
    base = f"compare/{index}"
    for chunk, start in enumerate(range(0, ours.latents, ROWS)):
        latents = range(start, min(start + ROWS, ours.latents))
        rows = [[_match(match, score, latent) for _, match, score in ways] for latent in latents]
        matched = sorted({match[0] for row in rows for match in row if match})
        scripts.write(
            report,
            f"{base}/rows/{chunk}",
            {
                "rows": rows,
                "numbers": matched,
                "named": [
                    [*other.name_of_latent(latent), number(other.columns["frequency"][latent])] for latent in matched
                ],
            },
        )
    for column, (_, _, score) in enumerate(ways):
        scripts.write(report, f"{base}/columns/{column}", scripts.pack(score.astype(np.float32)))
    summary = other.summary
    shared = [label for label in ours.labels if label in other.labels]
    scripts.write(
        report,
        f"{base}/facts",
        {
            "numbers": [overview.numbers(ours.results), overview.numbers(other.results)],
            "density": [overview.density(ours.results), overview.density(other.results)],
            "purity": [
                [overview.purities(ours.results, label), overview.purities(other.results, label)] for label in shared
            ],
            "ways": [[name, _scores(ours, score)] for name, _, score in ways],
        },
    )
    theirs = report_of(other.results.folder.parent, other.results)
    return {
        **{name: summary[name] for name in ("site", "latents", "d", "k", "rows", "samples", "model")},
        "name": name_of(other.results),
        "ways": [name for name, _, _ in ways],
        # Relative path to the other report, "" if it does not exist.
        "report": pathlib.PurePath(os.path.relpath(theirs, folder)).as_posix()
        if (theirs / "index.html").is_file()
        else "",
    }


def _match(match: np.ndarray, score: np.ndarray, latent: int) -> list[typing.Any] | None:
    return [int(match[latent]), number(score[latent], 3)] if match[latent] >= 0 else None


def _scores(ours: ReportData, score: np.ndarray) -> dict[str, typing.Any]:
    """Return the histogram and the median of the scores of our latents that fire."""
    of_firing = score[ours.fires]
    counts, _ = np.histogram(of_firing.clip(0, 1), SCORES)
    median = number(np.median(of_firing)) if len(of_firing) else None
    return {"edges": SCORES.tolist(), "counts": counts.tolist(), "median": median}
