"""What every part of the report is made from: results, opened, with the columns that pages need at hand."""

import dataclasses
import functools
import pathlib
import typing

import numpy as np
import pyarrow
import pyarrow.compute

from revelio_jax.interpret.latents.results import Results
from revelio_jax.interpret.report.scripts import number
from revelio_jax.store import Store

MEASURES = ("purity", "entropy", "sigma")
MINIATURES = 3  # pictures beside a latent where it is named


def report_of(run: pathlib.Path, results: Results) -> pathlib.Path:
    """Where the report of results of a run is: report, and of its neurons neurons_report."""
    name = results.folder.name
    return run / ("report" if name == "latents" else f"{name}_report")


def name_of(results: Results) -> str:
    """The name of a run; of its neurons said so."""
    neurons = results.facts["sae"]["architecture"] == "neurons"
    return f"{results.facts['name']}, neurons" if neurons else results.facts["name"]


@dataclasses.dataclass(frozen=True, eq=False)
class ReportData:
    """Results of F latents and the store they were read from.

    ``drawn`` are the numbers of the samples that have a picture in the report.
    """

    results: Results
    store: Store
    drawn: frozenset[int] = frozenset()

    @property
    def facts(self) -> dict[str, typing.Any]:
        return self.results.facts

    @property
    def latents(self) -> int:
        return self.facts["latents"]

    @property
    def labels(self) -> list[str]:
        return list(self.facts["labels"])

    @functools.cached_property
    def samples(self) -> pyarrow.Table:
        """The store's samples, in order of their numbers."""
        return self.store.table()

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The number columns of the latents, float64 [F], NaN where there is none."""
        table = self.results.latents
        names = [field.name for field in table.schema if not pyarrow.types.is_string(field.type)]
        return {name: table[name].cast(pyarrow.float64()).to_numpy(zero_copy_only=False) for name in names}

    @functools.cached_property
    def fires(self) -> np.ndarray:
        """Whether a latent fires on any row, bool [F]."""
        return self.columns["rows"] > 0

    @functools.cached_property
    def words(self) -> list[str]:
        return [word or "" for word in self.results.latents["words"].to_pylist()]

    @functools.cached_property
    def majority(self) -> dict[str, list[str | None]]:
        return {label: self.results.latents[f"{label}.majority"].to_pylist() for label in self.labels}

    @functools.cached_property
    def tags(self) -> dict[int, list[typing.Any]]:
        """latent -> [label, granularity, score, its interval's ends, model], of what was named."""
        table = self.results.tags()
        rows = table.to_pylist() if table is not None else []
        scores = ("score", "score_low", "score_high")
        return {
            row["latent"]: [
                row["label"],
                row["granularity"] or "",
                *(number(row.get(score), 3) for score in scores),
                row["model"] or "",
            ]
            for row in rows
            if row["label"]
        }

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Where the kept samples of each latent begin in their table, int64 [F + 1]."""
        return np.searchsorted(self.results.samples["latent"].to_numpy(), np.arange(self.latents + 1))

    @functools.cached_property
    def kept(self) -> np.ndarray:
        """Numbers of all samples that appear, in order."""
        return np.sort(pyarrow.compute.unique(self.results.samples["sample"]).to_numpy())

    @functools.cached_property
    def best(self) -> dict[int, list[int]]:
        """latent -> its strongest samples, a few."""
        table = self.results.samples.select(["latent", "sample", "kind", "rank"])
        few = table.filter(
            (pyarrow.compute.field("kind") == "top") & (pyarrow.compute.field("rank") < MINIATURES)
        ).sort_by([("latent", "ascending"), ("rank", "ascending")])
        best: dict[int, list[int]] = {}
        for latent, sample in zip(few["latent"].to_pylist(), few["sample"].to_pylist(), strict=True):
            best.setdefault(latent, []).append(sample)
        return best

    def named(self, latent: int) -> list[typing.Any]:
        """How a latent is named where another page speaks of it: [words, tag, pictures]."""
        pictures = [sample for sample in self.best.get(latent, ()) if sample in self.drawn]
        return [self.words[latent], self.tags.get(latent, [""])[0], pictures]
