"""Read the purity and spread of the latents of runs, by stratum, as means with intervals."""

import dataclasses
import pathlib
import typing
from collections.abc import Sequence

import numpy as np
import pyarrow

from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.latents.purity import MEASURES, interval
from revelio_jax.interpret.latents.results import Results
from revelio_jax.interpret.latents.summary import Summary

WHOLE = "all"  # name of all strata together
KINDS = {"standard": "dense", "neurons": "neurons", "random": "random"}  # architecture -> suffix of the run name
FIELDS = ("run", "site", "sae", "latents", "label", "measure", "stratum")
FIGURES = ("mean", "low", "high", "measured", "chance")


@dataclasses.dataclass(frozen=True, eq=False)
class RunPurity:
    """The values FIGURES of a run by (label, measure, stratum), None if they cannot be measured.

    The label of the spread is "", and WHOLE stands for all strata together. ``kind`` is "" for an SAE, otherwise a
    value of KINDS.
    """

    name: str
    kind: str
    summary: Summary
    means: dict[tuple[str, str, str], dict[str, float] | None]

    @property
    def strata(self) -> list[str]:
        return [str(value) for value in self.summary["stratum"]["values"]]


def read_runs(folders: Sequence[str]) -> list[RunPurity]:
    """Read all results of the runs. Raise InputError if a folder has no results or the strata differ in column."""
    loaded = [(folder, run_results) for folder in folders for run_results in _results(pathlib.Path(folder))]
    runs = []
    for folder, run_results in loaded:
        summary = run_results.summary
        kind = KINDS.get(summary["sae"]["architecture"], "")
        other_names = [other.summary["name"] for other_folder, other in loaded if other_folder != folder]
        name = folder if summary["name"] in other_names else summary["name"]
        runs.append(RunPurity(f"{name}, {kind}" if kind else name, kind, summary, _means(run_results)))
    columns = {run.summary["stratum"]["column"] for run in runs if run.strata}
    if len(columns) > 1:
        raise InputError(
            f"the runs have strata by {' and by '.join(sorted(columns))}; interpret them with the same "
            "config.interpret.stratum"
        )
    return runs


def _results(folder: pathlib.Path) -> list[Results]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it must be a run folder, for example runs/mini_sd")
    result_folders = [folder / name for name in ("latents", "neurons", "random")]
    existing = [path for path in result_folders if (path / "summary.json").is_file()]
    return [results.load(path) for path in existing or result_folders[:1]]


def _means(results: Results) -> dict[tuple[str, str, str], dict[str, float] | None]:
    summary, means = results.summary, {}
    strata = [str(value) for value in summary["stratum"]["values"]]
    spread = _column(results.latents, "spread", results.latents["rows"].to_numpy() > 0)
    means["", "spread", WHOLE] = _figures(spread, None)
    shape = summary["latents"], len(strata)
    fires = results.strata["rows"].to_numpy().reshape(shape) > 0
    spread = _column(results.strata, "spread", fires.reshape(-1)).reshape(shape)
    for i, stratum in enumerate(strata):
        means["", "spread", stratum] = _figures(spread[:, i], None)
    for label in summary["labels"]:
        for measure in MEASURES:
            name, purity = f"{label}.{measure}", summary["purity"][label]
            expected = (purity["chance"] or {}).get(measure)
            means[label, measure, WHOLE] = _figures(_column(results.latents, name), expected)
            of_strata = _column(results.strata, name).reshape(shape)
            for i, stratum in enumerate(strata):
                expected = (purity["chance_of_strata"][i] or {}).get(measure)
                means[label, measure, stratum] = _figures(of_strata[:, i], expected)
    return means


def _column(table: pyarrow.Table, name: str, where: np.ndarray | None = None) -> np.ndarray:
    """Return a column as float64, with NaN for null values and for rows where ``where`` is false."""
    values = table[name].to_numpy().astype(np.float64)
    return values if where is None else np.where(where, values, np.nan)


def _figures(values: np.ndarray, chance: float | None) -> dict[str, float] | None:
    mean = interval(values)
    if mean is None:
        return None
    figures = {"mean": mean["mean"], "low": mean["low"], "high": mean["high"], "measured": mean["latents"]}
    return figures | {"chance": np.nan if chance is None else chance}


def rows(runs: Sequence[RunPurity]) -> list[dict[str, typing.Any]]:
    """Return the rows of the CSV file; their fields are FIELDS and FIGURES."""
    lines = []
    for run in runs:
        of_run = {"run": run.name, "site": run.summary["site"], "latents": run.summary["latents"]}
        of_run["sae"] = run.summary["sae"]["architecture"]
        for (label, measure, stratum), figures in run.means.items():
            if figures:
                key = {"label": label, "measure": measure, "stratum": stratum}
                figures = {name: "" if np.isnan(value) else value for name, value in figures.items()}
                lines.append(of_run | key | figures)
    return lines
