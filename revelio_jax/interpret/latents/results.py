"""The results of interpretation: the files that connect interpretation, tags, the report and the explorer.

    runs/<name>/latents/summary.json         settings and totals, see :mod:`.summary`; written last
    runs/<name>/latents/latents.parquet      one row per latent
    runs/<name>/latents/strata.parquet       one row per latent and stratum: a timestep, or a value of a column
    runs/<name>/latents/samples.parquet      the samples recorded for each latent
    runs/<name>/latents/arrays.safetensors   histograms, profiles, neighbors
    runs/<name>/latents/tags.parquet         the answers of a vision-language model; only after tagging

Latents have the numbers of the SAE folder. Values have its units, as in steering.
"""

import dataclasses
import json
import pathlib
import shutil
import typing

import numpy as np
import pyarrow
import pyarrow.parquet
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from revelio_jax import checksums, files, json_text
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents.summary import Summary
from revelio_jax.store import Store, open_store

VERSION = 2  # 2 has the measures of measured.py
SUMMARY, ARRAYS = "summary.json", "arrays.safetensors"
TABLES = ("latents", "strata", "samples")
# The files of a run on object storage that are reused: results, the thumbnails of reports, and embeddings.
REUSED = (
    *("latents/*", "neurons/*", "random/*", "report/*", "neurons_report/*", "random_report/*"),
    "embeddings.safetensors",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """The results of a run: ``summary`` are the contents of summary.json; arrays stay on disk.

    ``latents``, one row per latent, in order:
        latent           int32
        rows, samples    int64, the number of rows and samples on which it fires
        frequency        float64, share of the rows on which it fires
        mean, max        float32, of its values on those rows
        spread           float32, share of the positions of a sample on which it fires: the mean over samples and
                         timesteps on which it fires at all
        words            string, the tokens at which it is strongest, separated by " · "; "" for images
        LABEL.sigma      float32, standard deviation of the class numbers of its top samples (Revelio)
        LABEL.entropy    float32, entropy of their classes in bits
        LABEL.purity     float32, share of their most frequent class
        LABEL.majority   string, that class; the four label columns are null if it fires on too few samples
        monosemanticity, moran, localization, inside
                         float32, see measured.py; only those that summary["measures"] has, null as above

    ``strata``: latent, stratum (string), rows, samples, mean, max, spread, LABEL.sigma, .entropy, .purity and
    .majority, sorted by latent and stratum, strata in the order of summary["stratum"].

    ``samples``, sorted by latent, kind ("stratum", "top", "weaker"), stratum and rank:
        latent, sample   int32
        kind             "top": the strongest samples; "weaker": samples from lower quantiles; "stratum": the
                         strongest samples of a stratum. A sample appears at its strongest position.
        stratum          string, null unless kind is "stratum"
        rank             int32 from 0, strongest first
        position         int32, -1 without a position
        timestep         int32, -1 without a timestep
        value            float32
        quantile         float32, of the value among the rows on which the latent fires

    Arrays, by name:
        histogram        int64 [F, bins], rows by log2 of the value; the outermost bins also hold all values beyond
        profile          uint8 [F, top, cells], the values over the top sample of each rank; 255 is its peak
        coactive         int32 [F, neighbors], latents that fire on the same rows, -1 in unused places
        coactive_score   float32 [F, neighbors], Jaccard index of the rows
        nearest          int32 [F, neighbors], latents with similar decoder rows
        nearest_cosine   float32 [F, neighbors]
        drawn            int32 [random_samples], random samples, the same for all latents, ascending
        fires            bool [F, random_samples], whether a latent fires on each, at any position
    """

    folder: pathlib.Path
    summary: Summary
    latents: pyarrow.Table
    strata: pyarrow.Table
    samples: pyarrow.Table

    def array(self, name: str) -> np.ndarray:
        """Return a whole array."""
        with safe_open(self.folder / ARRAYS, "np") as file:
            return file.get_tensor(name)

    def part(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return the rows of latents [start, stop) of an array, without reading the rest."""
        with safe_open(self.folder / ARRAYS, "np") as file:
            return file.get_slice(name)[start:stop]

    def tags(self) -> pyarrow.Table | None:
        """Return the answers of a vision-language model, one row per tagged latent; None before tagging.

        latent       int32
        label        string, null without a usable answer
        granularity  string, null without a usable answer
        score        float64, balanced accuracy of the label on held-out samples, null with too few of them; 0.5 is
                     chance. score_low and score_high are its 95 % interval.
        held_out     int32, the number of held-out samples
        hard_score, hard_low, hard_high, fuzzing_score, fuzzing_low, fuzzing_high
                     float64, balanced accuracies with their intervals, null without config.tags.scores
        model        string
        """
        path = self.folder / "tags.parquet"
        return pyarrow.parquet.read_table(path) if path.is_file() else None


def open_store_of(results: Results) -> Store:
    """Open the store that results were computed from. Raise InputError if it is missing or has changed."""
    try:
        store = open_store(results.summary["store"]["location"])
    except InputError as error:
        advice = "if the store was moved, run revelio interpret with config.extract.store at its new place"
        raise InputError(f"{error}; {advice}") from error
    if store.fingerprint != results.summary["store"]["fingerprint"]:
        raise InputError(
            f"store {store.location} has changed since {results.folder} was computed; run revelio interpret again"
        )
    return store


def folder_of(run: str, sae: str | None = None) -> pathlib.Path:
    """Return the folder of a run's results; ``sae`` is config.interpret.sae.

    Neurons and the random dictionary have their own folders.
    """
    return pathlib.Path(run, sae if sae in ("neurons", "random") else "latents")


def save(
    folder: pathlib.Path,
    summary: Summary,
    tables: dict[str, pyarrow.Table],
    arrays: dict[str, np.ndarray],
) -> Results:
    """Write all files and replace the previous results in one step. Raise InputError if writing fails."""
    with files.replacing_folder(folder) as part:
        for name in TABLES:
            pyarrow.parquet.write_table(tables[name], part / f"{name}.parquet")
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part / ARRAYS)
        sums = {path.name: files.sha256(path) for path in sorted(part.iterdir())}
        _write_summary(part, {**summary, "files": sums})
        shutil.copymode(part / SUMMARY, part / ARRAYS)  # safetensors creates files that only the owner can read
    return load(folder)


def update_summary(results: Results, summary: Summary) -> Results:
    """Return the results with another summary, for example after the store was moved. Rewrite summary.json if needed.

    Raise InputError if the file cannot be written.
    """
    if summary != results.summary:
        _write_summary(results.folder, summary)
    return dataclasses.replace(results, summary=summary)


def _write_summary(folder: pathlib.Path, summary: Summary) -> None:
    content = checksums.sealed({"version": VERSION} | summary)
    files.write_text(folder / SUMMARY, json.dumps(content, indent=1) + "\n")


def load(folder: pathlib.Path) -> Results:
    """Read results; arrays stay on disk. Raise InputError if a file is missing, malformed or damaged."""
    try:
        summary = json_text.parse_object((folder / SUMMARY).read_bytes())
        if summary.get("version") != VERSION:
            raise InputError(
                f"{folder} has version {summary.get('version')}; it must be {VERSION}: run revelio interpret again"
            )
        summary = checksums.unsealed(summary)
        sums = summary.get("files", {})
        if not isinstance(sums, dict):
            raise InputError(f"{folder / SUMMARY}: files is {str(sums)[:40]}; it must be an object")
        for name, expected in sums.items():
            if name not in (ARRAYS, *(f"{table}.parquet" for table in TABLES)):
                raise InputError(f"{folder / SUMMARY}: unknown file {name[:80]!r}; run revelio interpret")
            if files.sha256(folder / name) != expected:
                raise InputError(f"{folder / name} is damaged: it does not match its checksum; run revelio interpret")
        tables = {name: pyarrow.parquet.read_table(folder / f"{name}.parquet") for name in TABLES}
        with safe_open(folder / ARRAYS, "np"):
            return Results(folder, typing.cast(Summary, summary), **tables)
    except FileNotFoundError as error:
        names = (SUMMARY, ARRAYS, *(f"{name}.parquet" for name in TABLES))
        missing = next((name for name in names if not (folder / name).is_file()), "such file")
        raise InputError(f"{folder} has no {missing}; create it with revelio interpret") from error
    except (ValueError, OSError, SafetensorError, pyarrow.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} cannot be read: {error}") from error
