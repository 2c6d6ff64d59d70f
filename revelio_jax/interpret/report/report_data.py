"""The input of the report: the results of a run and their store, with the columns that pages need."""

import dataclasses
import functools
import pathlib
import typing

import numpy as np
import pyarrow

from revelio_jax.interpret.latents.results import Results
from revelio_jax.interpret.latents.summary import Summary
from revelio_jax.interpret.report.scripts import number
from revelio_jax.store import Store
from revelio_jax.store.parquet import compute

MEASURES = ("purity", "entropy", "sigma")
MINIATURES = 3  # thumbnails next to the name of a latent


def report_of(run: pathlib.Path, results: Results) -> pathlib.Path:
    """Return the folder of the report: report, or for example neurons_report for the results of neurons."""
    name = results.folder.name
    return run / ("report" if name == "latents" else f"{name}_report")


def name_of(results: Results) -> str:
    """Return the name of the run, with ", neurons" or ", random" for the results of these."""
    kind = results.summary["sae"]["architecture"]
    return f"{results.summary['name']}, {kind}" if kind in ("neurons", "random") else results.summary["name"]


@dataclasses.dataclass(frozen=True, eq=False)
class ReportData:
    """The results of F latents, and the store of the report.

    ``with_image`` are the numbers of the samples with a thumbnail in the report.
    """

    results: Results
    store: Store
    with_image: frozenset[int] = frozenset()

    @property
    def summary(self) -> Summary:
        return self.results.summary

    @property
    def latents(self) -> int:
        return self.summary["latents"]

    @property
    def labels(self) -> list[str]:
        return list(self.summary["labels"])

    @functools.cached_property
    def samples(self) -> pyarrow.Table:
        """Return the samples of the store, in order."""
        return self.store.table()

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Return the numeric columns of the latents, float64 [F]; null becomes NaN."""
        table = self.results.latents
        names = [field.name for field in table.schema if not pyarrow.types.is_string(field.type)]
        return {name: table[name].cast(pyarrow.float64()).to_numpy(zero_copy_only=False) for name in names}

    @functools.cached_property
    def fires(self) -> np.ndarray:
        """Return whether each latent fires on any row, bool [F]."""
        return self.columns["rows"] > 0

    @functools.cached_property
    def words(self) -> list[str]:
        return [word or "" for word in self.results.latents["words"].to_pylist()]

    @functools.cached_property
    def majority(self) -> dict[str, list[str | None]]:
        return {label: self.results.latents[f"{label}.majority"].to_pylist() for label in self.labels}

    @functools.cached_property
    def tags(self) -> dict[int, list[typing.Any]]:
        """Return [label, granularity, score, low and high end of its interval, model] of each tagged latent."""
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
        """Return the offsets of each latent in the table of recorded samples, int64 [F + 1]."""
        return np.searchsorted(self.results.samples["latent"].to_numpy(), np.arange(self.latents + 1))

    @functools.cached_property
    def shown_samples(self) -> np.ndarray:
        """Return the numbers of all samples that the report shows, ascending."""
        return np.sort(compute.unique(self.results.samples["sample"]).to_numpy())

    @functools.cached_property
    def best(self) -> dict[int, list[int]]:
        """Return the MINIATURES top samples of each firing latent."""
        table = self.results.samples.select(["latent", "sample", "kind", "rank"])
        top = table.filter((compute.field("kind") == "top") & (compute.field("rank") < MINIATURES)).sort_by(
            [("latent", "ascending"), ("rank", "ascending")]
        )
        best: dict[int, list[int]] = {}
        for latent, sample in zip(top["latent"].to_pylist(), top["sample"].to_pylist(), strict=True):
            best.setdefault(latent, []).append(sample)
        return best

    def name_of_latent(self, latent: int) -> list[typing.Any]:
        """Return the name of a latent on other pages: [words, tag, samples with a thumbnail]."""
        images = [sample for sample in self.best.get(latent, ()) if sample in self.with_image]
        return [self.words[latent], self.tags.get(latent, [""])[0], images]
