"""What is known of the latents: words, tags and samples that interpreting kept, to be searched and shown."""

import dataclasses
import hashlib
import math
import pathlib
import re
import typing

import numpy as np
import pyarrow.compute as pc

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.interpret import token_text
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.latents.results import Results
from revelio_jax.sae_folder.reader import WEIGHTS
from revelio_jax.store import Store, open_store

Row = dict[str, typing.Any]
STARTS = ("<|startoftext|>", "<s>", "[CLS]")
MOSTLY = 0.6  # share of the strongest samples from which on a class names a latent


@dataclasses.dataclass(frozen=True, eq=False)
class Catalog:
    """What :class:`revelio_jax.interpret.latents.results.Results` and its tags say, by latent.

    ``missing`` says in one line why nothing is known; "" where all is well, and ``found`` is there. ``texts``
    is all that is said of each latent in words, ``frequency`` [F] the share of the rows on which it fires.
    """

    missing: str
    found: Results | None = None
    tags: dict[int, list[Row]] = dataclasses.field(default_factory=dict)
    texts: tuple[str, ...] = ()
    frequency: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    store: Store | None = None

    @property
    def labels(self) -> list[str]:
        """Columns whose purity was measured."""
        return list(self.found.facts.get("labels", [])) if self.found else []

    def row(self, latent: int) -> Row:
        """Its row of ``latents``; {} where nothing is known."""
        return self.found.latents.slice(latent, 1).to_pylist()[0] if self.found else {}

    def name(self, latent: int) -> str:
        """A latent in a few words: its best tag, else the words it is strongest at, else its classes."""
        if tags := self.tags.get(latent):
            return tags[0]["label"]
        return marks(self.row(latent).get("words") or "").strip() or ", ".join(self.classes(latent))

    def classes(self, latent: int) -> list[str]:
        """Those that most of its strongest samples are of, the purest first."""
        row = self.row(latent)
        shares = [(row.get(f"{label}.purity") or 0.0, row.get(f"{label}.majority")) for label in self.labels]
        return [majority for share, majority in sorted(shares, key=lambda pair: -pair[0]) if share >= MOSTLY]

    def highest(self, latent: int) -> float | None:
        """Its largest value, where that is known and above 0."""
        value = self.row(latent).get("max")
        return float(value) if value and math.isfinite(value) and value > 0 else None

    def search(self, typed: str, most: int) -> list[tuple[int, str]]:
        """Latents whose tags, words or labels hold every word that was typed, with what holds it.

        A whole word goes before the start of one, that before any part; then the more frequent.
        """
        wanted = typed.casefold().split()
        ranked = []
        for latent, held in enumerate(self.texts):
            if all(word in held for word in wanted):
                worst = max(_place(word, held) for word in wanted)
                ranked.append((worst, -self.frequency[latent], latent))
        return [(latent, self._why(latent, wanted)) for _, _, latent in sorted(ranked)[:most]]

    def _why(self, latent: int, wanted: list[str]) -> str:
        for source, said in _said(self.row(latent), self.tags.get(latent, []), self.labels):
            if any(word in said.casefold() for word in wanted):
                return f"{source}: {said}"
        return ""

    def samples(self, latent: int, most: int) -> list[Row]:
        """The strongest samples of a latent: {value, text, position, timestep}; text "" where it is gone."""
        if not self.found:
            return []
        table = self.found.samples
        here = pc.and_(pc.equal(table["latent"], latent), pc.equal(table["kind"], "top"))
        rows = table.filter(here).slice(0, most).to_pylist()
        described = self.store.samples if self.store else []
        for row in rows:
            sample = described[row["sample"]] if row["sample"] < len(described) else {}
            row["text"] = str(sample.get("prompt") or sample.get("image") or "")
        return rows

    def neighbours(self, latent: int, name: str, score: str) -> list[tuple[int, float]]:
        """Latents of an array of neighbours, with their scores."""
        if not self.found:
            return []
        (latents,), (scores,) = (self.found.part(array, latent, latent + 1) for array in (name, score))
        return [(int(i), float(s)) for i, s in zip(latents, scores, strict=True) if i >= 0]


def marks(said: str) -> str:
    """Words in which a tokenizer's marks are called what they are."""
    return token_text.SPECIAL.sub(lambda mark: "(start)" if mark[0] in STARTS else "(end)", said)


def know(config: Config, sae_folder: pathlib.Path, n_latents: int) -> Catalog:
    """Read what interpreting wrote for this SAE; without it the explorer knows numbers only."""
    try:
        found = results.load(results.folder_of(config.run))
    except InputError as error:
        return Catalog(str(error))
    # A results folder of other weights would put wrong words beside a latent.
    read, here = str(found.facts.get("sae", {}).get("sha256", "")), sha256(sae_folder / WEIGHTS)
    if found.facts["latents"] != n_latents or (read and here and read != here):
        return Catalog(f"{found.folder} is of another SAE; python -m revelio_jax.interpret makes it anew")
    tags: dict[int, list[Row]] = {}
    for row in table.to_pylist() if (table := found.tags()) else []:
        if row["label"]:  # no answer names a latent
            tags.setdefault(row["latent"], []).append(row)
    for rows in tags.values():
        rows.sort(key=lambda row: -(row["score"] if row["score"] is not None else 0.0))
    labels = list(found.facts.get("labels", []))
    columns = ["words", *(f"{label}.majority" for label in labels)]
    rows = found.latents.select(columns).to_pylist()
    texts = tuple(
        "\n".join(said.casefold() for _, said in _said(row, tags.get(i, []), labels)) for i, row in enumerate(rows)
    )
    frequency = found.latents["frequency"].to_numpy()
    try:
        store = open_store(found.facts["store"]["location"])
    except (InputError, KeyError, TypeError):
        store = None  # it may have been moved; words and figures are still there
    return Catalog("", found, tags, texts, frequency, store)


def sha256(file: pathlib.Path) -> str:
    """ "" where there is no such file."""
    if not file.is_file():
        return ""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _said(row: Row, tags: list[Row], labels: list[str]) -> list[tuple[str, str]]:
    """All that is said of a latent in words, with what says it."""
    said = [("tag", tag["label"]) for tag in tags if tag["label"]]
    if row.get("words"):
        said.append(("words", marks(row["words"])))
    return said + [(label, row[f"{label}.majority"]) for label in labels if row.get(f"{label}.majority")]


def _place(word: str, held: str) -> int:
    """0 where ``word`` is a whole word of ``held``, 1 where it starts one, 2 where it is a part."""
    if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", held):
        return 0
    return 1 if re.search(rf"(?<!\w){re.escape(word)}", held) else 2
