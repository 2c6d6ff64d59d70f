"""How pure the latents of runs are in labels, and how far they spread, by stratum: means with intervals."""

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

WHOLE = "all"  # strata together
KINDS = {"standard": "dense", "neurons": "neurons"}  # what is told of a run beside its name
FIELDS = ("run", "site", "sae", "latents", "label", "measure", "stratum")
FIGURES = ("mean", "low", "high", "measured", "chance")


@dataclasses.dataclass(frozen=True, eq=False)
class RunPurity:
    """FIGURES of a run by label ("" of spread), measure, and stratum or WHOLE; None where there are none.

    ``kind`` is "" of an SAE, else one of KINDS.
    """

    name: str
    kind: str
    facts: dict[str, typing.Any]
    means: dict[tuple[str, str, str], dict[str, float] | None]

    @property
    def strata(self) -> list[str]:
        return [str(value) for value in self.facts["stratum"]["values"]]


def read_runs(folders: Sequence[str]) -> list[RunPurity]:
    """All results of the runs. Raises InputError where a folder has none, or they do not go together."""
    found = [(folder, part) for folder in folders for part in _results(pathlib.Path(folder))]
    names = [part.facts["name"] for _, part in found]
    runs = []
    for folder, part in found:
        kind = KINDS.get(part.facts["sae"]["architecture"], "")
        same = [name for (other, _), name in zip(found, names, strict=True) if other != folder]
        name = folder if part.facts["name"] in same else part.facts["name"]
        runs.append(RunPurity(f"{name}, {kind}" if kind else name, kind, part.facts, _means(part)))
    columns = {run.facts["stratum"]["column"] for run in runs if run.strata}
    if len(columns) > 1:
        raise InputError(
            f"the runs are told apart by {' and by '.join(sorted(columns))}; interpret them alike "
            "(config.interpret.stratum)"
        )
    return runs


def _results(folder: pathlib.Path) -> list[Results]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give folders of runs, as runs/mini_sd")
    places = [folder / "latents", folder / "neurons"]
    there = [place for place in places if (place / "summary.json").is_file()]
    return [results.load(place) for place in there or places[:1]]


def _means(found: Results) -> dict[tuple[str, str, str], dict[str, float] | None]:
    facts, means = found.facts, {}
    strata = [str(value) for value in facts["stratum"]["values"]]
    spread = _column(found.latents, "spread", found.latents["rows"].to_numpy() > 0)
    means["", "spread", WHOLE] = _figures(spread, None)
    shape = facts["latents"], len(strata)
    fires = found.strata["rows"].to_numpy().reshape(shape) > 0
    spread = _column(found.strata, "spread", fires.reshape(-1)).reshape(shape)
    for i, stratum in enumerate(strata):
        means["", "spread", stratum] = _figures(spread[:, i], None)
    for label in facts["labels"]:
        for measure in MEASURES:
            name, chance = f"{label}.{measure}", facts["purity"][label]
            means[label, measure, WHOLE] = _figures(_column(found.latents, name), (chance["chance"] or {}).get(measure))
            of_strata = _column(found.strata, name).reshape(shape)
            for i, stratum in enumerate(strata):
                expected = (chance["chance_of_strata"][i] or {}).get(measure)
                means[label, measure, stratum] = _figures(of_strata[:, i], expected)
    return means


def _column(table: pyarrow.Table, name: str, where: np.ndarray | None = None) -> np.ndarray:
    """A column as float64, NaN where it is null or not ``where``."""
    values = table[name].to_numpy().astype(np.float64)
    return values if where is None else np.where(where, values, np.nan)


def _figures(values: np.ndarray, chance: float | None) -> dict[str, float] | None:
    of = interval(values)
    return of and {"mean": of["mean"], "low": of["low"], "high": of["high"], "measured": of["latents"]} | {
        "chance": np.nan if chance is None else chance
    }


def rows(runs: Sequence[RunPurity]) -> list[dict[str, typing.Any]]:
    """All numbers, a row each, for the CSV; fields are FIELDS and FIGURES."""
    found = []
    for run in runs:
        of_run = {"run": run.name, "site": run.facts["site"], "latents": run.facts["latents"]}
        of_run["sae"] = run.facts["sae"]["architecture"]
        for (label, measure, stratum), figures in run.means.items():
            if figures:
                what = {"label": label, "measure": measure, "stratum": stratum}
                figures = {name: "" if np.isnan(value) else value for name, value in figures.items()}
                found.append(of_run | what | figures)
    return found
