"""What is known of every latent of a run: the files between interpreting, tags, report and explorer.

    runs/<name>/latents/summary.json         facts, see :class:`Results`; written last
    runs/<name>/latents/latents.parquet      a row a latent
    runs/<name>/latents/strata.parquet       a row a latent and stratum: a timestep, or a value of a column
    runs/<name>/latents/samples.parquet      the samples that are kept of a latent
    runs/<name>/latents/arrays.safetensors   histograms, maps, neighbours
    runs/<name>/latents/tags.parquet         what a vision-language model says; only after tagging

Latents count as the SAE folder counts them, and values are in its units: those of steering.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import typing

import numpy as np
import pyarrow
import pyarrow.parquet
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from revelio_jax.errors import InputError
from revelio_jax.store import Store, open_store

VERSION = 1
FACTS, ARRAYS = "summary.json", "arrays.safetensors"
TABLES = ("latents", "strata", "samples")


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """What is known of F latents.

    ``facts``:
        version          of these files
        name, site       of the run and its hook point
        model, family    of the pipeline; mode, timesteps: as the store was extracted
        store            location and fingerprint of the store; images: where its pictures are, or ""
        sae              folder, sha256 of its weights and architecture, as SAELens calls it; "", "neurons"
                         and "neurons" where there is none
        d, latents, k    widths; k is null where any number fires
        rows, samples    that were read
        kind             "text" or "image"
        tokens           column of the store's samples with their tokens, as clip.tokens; null of images
        positions        of a sample at most
        grid             [height, width] of the positions, null where they are no map
        cells            [height, width] that a map was brought to by maxima, or [1, positions]
        stratum          {"column": "timestep", "values": [...]}, or a column of the samples; [] where none
        labels           columns of the samples that purity was measured of
        purity           of each label: classes, samples that have one; strongest, how many are looked at;
                         measured, of each measure the mean over latents as mean, low, high, latents, with
                         a 95 % interval, null without any; chance, what samples at random would have, null
                         where there are too few; chance_of_strata, a list of such in the order of stratum
        fields           of config.interpret that decide all this
        top, weaker, neighbours   kept of each latent, at most
        histogram_log2_edges      [bins + 1] of the values
        seconds          that reading took

    ``latents``, a row a latent in order:
        latent           int32
        rows, samples    int64, on how many it fires
        frequency        float64, share of the rows
        mean, max        float32, of the values where it fires
        spread           float32, share of a sample's positions on which it fires, mean of those where it
                         does; a sample counts once for each of its timesteps
        words            string: the tokens at which it is strongest, with " · " between, "" of images
        LABEL.sigma      float32, standard deviation of class numbers over the strongest samples (Revelio)
        LABEL.entropy    float32, bits, of their classes
        LABEL.purity     float32, share of the most frequent class; LABEL.majority, string, that class
                         Those three are null where a latent fires on too few samples.

    ``strata``: latent, stratum (string), rows, samples, mean, max, spread, LABEL.sigma, .entropy, .purity,
    .majority, sorted by latent and stratum, in the order of facts["stratum"].

    ``samples``, sorted by latent, kind ("stratum", "top", "weaker"), stratum and rank:
        latent, sample   int32
        kind             "top": the strongest samples, each at its strongest position; "weaker": drawn from
                         lower quantiles; "stratum": the strongest of a stratum
        stratum          string, null but of the last kind
        rank             int32 from 0, strongest first
        position, timestep  int32, -1 where there is none; value float32
        quantile         float32, of the value among all where the latent fires

    ``arrays``:
        histogram        int64 [F, bins], rows by log2 of the value; the outermost bins hold what is outside
        profile          uint8 [F, top, cells], values over the top sample of that rank; 255 is its peak
        coactive         int32 [F, neighbours], latents that fire on the same rows, -1 where none
        coactive_score   float32 [F, neighbours], Jaccard index of the rows
        nearest          int32 [F, neighbours], by decoder
        nearest_cosine   float32 [F, neighbours]
        drawn            int32 [drawn], samples drawn at random, the same for every latent, in order
        fires            bool [F, drawn], whether a latent fires on them, anywhere
    """

    folder: pathlib.Path
    facts: dict[str, typing.Any]
    latents: pyarrow.Table
    strata: pyarrow.Table
    samples: pyarrow.Table

    def array(self, name: str) -> np.ndarray:
        """An array, whole."""
        with safe_open(self.folder / ARRAYS, "np") as file:
            return file.get_tensor(name)

    def part(self, name: str, start: int, stop: int) -> np.ndarray:
        """Latents [start, stop) of an array; nothing else is read."""
        with safe_open(self.folder / ARRAYS, "np") as file:
            return file.get_slice(name)[start:stop]

    def tags(self) -> pyarrow.Table | None:
        """What a vision-language model says, a row a latent that it was asked about; None where none was.

        latent int32; label string, null where the answer was none; granularity string, likewise;
        score float64, balanced accuracy of the label on samples held out, chance 0.5, null where there are
        too few, with score_low and score_high, a 95 % interval; held_out int32, the samples; model string.
        """
        path = self.folder / "tags.parquet"
        return pyarrow.parquet.read_table(path) if path.is_file() else None


def store_of(found: Results) -> Store:
    """The store that results were read from. Raises InputError where it is not there, or another."""
    store = open_store(found.facts["store"]["location"])
    if store.fingerprint != found.facts["store"]["fingerprint"]:
        raise InputError(
            f"store {store.location} is another one than {found.folder} was made of; "
            "run python -m revelio_jax.interpret again"
        )
    return store


def folder_of(run: str, sae: str = "") -> pathlib.Path:
    """Where a run's results are; those of its neurons, where ``sae``, config.interpret.sae, says so."""
    return pathlib.Path(run, "neurons" if sae == "neurons" else "latents")


def begin(folder: pathlib.Path) -> None:
    """Make room for what :func:`save` will write to ``folder``. Raises InputError where it could not.

    What a save that was killed between its renames set aside is put back.
    """
    part, old = _beside(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file; results need a folder there")
    try:
        if old.is_dir() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error


def save(
    folder: pathlib.Path,
    facts: dict[str, typing.Any],
    tables: dict[str, pyarrow.Table],
    arrays: dict[str, np.ndarray],
) -> Results:
    """Write the files, whole or not at all; what was there is replaced. Raises InputError."""
    begin(folder)
    part, old = _beside(folder)
    try:
        for name in TABLES:
            pyarrow.parquet.write_table(tables[name], part / f"{name}.parquet")
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        _write_facts(part, facts)
        save_file(arrays, part / ARRAYS)
        shutil.copymode(part / FACTS, part / ARRAYS)  # safetensors makes files that nobody else can read
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(part, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)  # of a disk that is full
        raise InputError(f"{folder} cannot be written: {error}") from error
    shutil.rmtree(old, ignore_errors=True)
    return load(folder)


def renewed(found: Results, facts: dict[str, typing.Any]) -> Results:
    """The same results with some facts changed, such as where the store is now."""
    facts = found.facts | facts
    if facts != found.facts:
        try:
            _write_facts(found.folder, facts)
        except OSError as error:
            raise InputError(f"{found.folder} cannot be written: {error.strerror or error}") from error
    return dataclasses.replace(found, facts=facts)


def _beside(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Where results are written, and where those that they replace wait meanwhile."""
    return folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")


def _write_facts(folder: pathlib.Path, facts: dict[str, typing.Any]) -> None:
    part = folder / f"{FACTS}.part"
    part.write_text(json.dumps({"version": VERSION} | facts, indent=1) + "\n")
    os.replace(part, folder / FACTS)


def load(folder: pathlib.Path) -> Results:
    """Read what :func:`save` wrote; arrays stay on disk. Raises InputError."""
    try:
        facts = json.loads((folder / FACTS).read_text())
        if facts.get("version") != VERSION:
            raise InputError(f"{folder} has version {facts.get('version')}; this one reads {VERSION}")
        tables = {name: pyarrow.parquet.read_table(folder / f"{name}.parquet") for name in TABLES}
        with safe_open(folder / ARRAYS, "np"):
            return Results(folder, facts, **tables)
    except FileNotFoundError as error:
        files = (FACTS, ARRAYS, *(f"{name}.parquet" for name in TABLES))
        missing = next((name for name in files if not (folder / name).is_file()), "such file")
        raise InputError(f"{folder} has no {missing}; python -m revelio_jax.interpret makes it") from error
    except (ValueError, OSError, SafetensorError, pyarrow.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} cannot be read: {error}") from error
