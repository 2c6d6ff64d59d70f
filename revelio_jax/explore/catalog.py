"""The catalog of latents: words, tags and samples from ``revelio interpret``, for search and display."""

import dataclasses
import math
import pathlib
import re
import typing

import numpy as np

from revelio_jax import files
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.interpret import token_text
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.latents.results import Results
from revelio_jax.sae_folder.reader import WEIGHTS
from revelio_jax.store import Store, open_store
from revelio_jax.store.parquet import compute

TableRow = dict[str, typing.Any]
STARTS = ("<|startoftext|>", "<s>", "[CLS]")
MIN_PURITY = 0.6  # smallest share of the strongest samples for a class to name a latent


@dataclasses.dataclass(frozen=True, eq=False)
class Catalog:
    """Words, tags and samples of every latent.

    Without results, ``results`` is None and ``missing`` gives the reason in one line; otherwise ``missing`` is "".
    ``texts`` has all searchable words of each latent. ``frequency`` [F] is the share of rows on which it fires.
    ``store`` is None if the activation store cannot be opened any more.
    """

    missing: str
    results: Results | None = None
    tags: dict[int, list[TableRow]] = dataclasses.field(default_factory=dict)
    texts: tuple[str, ...] = ()
    frequency: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    store: Store | None = None

    @property
    def labels(self) -> list[str]:
        """Return the label columns whose purity was measured."""
        return list(self.results.summary.get("labels", [])) if self.results else []

    def row(self, latent: int) -> TableRow:
        """Return a latent's row of ``Results.latents``, {} without results."""
        return self.results.latents.slice(latent, 1).to_pylist()[0] if self.results else {}

    def name(self, latent: int) -> str:
        """Return a short name: the best tag, otherwise the strongest words, otherwise the classes."""
        if tags := self.tags.get(latent):
            return tags[0]["label"]
        return name_marks(self.row(latent).get("words") or "").strip() or ", ".join(self.classes(latent))

    def classes(self, latent: int) -> list[str]:
        """Return the classes of most of its strongest samples, the purest first."""
        row = self.row(latent)
        pairs = [(row.get(f"{label}.purity") or 0.0, row.get(f"{label}.majority")) for label in self.labels]
        pairs = sorted(pairs, key=lambda pair: -pair[0])
        return [majority for purity, majority in pairs if majority is not None and purity >= MIN_PURITY]

    def highest(self, latent: int) -> float | None:
        """Return the largest value of a latent, or None if it is unknown or not above 0."""
        value = self.row(latent).get("max")
        return float(value) if value and math.isfinite(value) and value > 0 else None

    def search(self, query: str, top: int) -> list[tuple[int, str]]:
        """Return latents whose tags, words or labels contain every word of the query, with a matching text.

        Matches of whole words come first, then of starts of words, then of other parts. Equal matches are sorted by
        frequency of the latent.
        """
        words = query.casefold().split()
        ranked = []
        for latent, text in enumerate(self.texts):
            if all(word in text for word in words):
                worst = max(_match_rank(word, text) for word in words)
                ranked.append((worst, -self.frequency[latent], latent))
        return [(latent, self._matching_text(latent, words)) for _, _, latent in sorted(ranked)[:top]]

    def _matching_text(self, latent: int, words: list[str]) -> str:
        for source, text in _descriptions(self.row(latent), self.tags.get(latent, []), self.labels):
            if any(word in text.casefold() for word in words):
                return f"{source}: {text}"
        return ""

    def samples(self, latent: int, top: int) -> list[TableRow]:
        """Return the strongest samples of a latent: {value, text, position, timestep}; text is "" without the store."""
        if not self.results:
            return []
        table = self.results.samples
        is_top = compute.and_(compute.equal(table["latent"], latent), compute.equal(table["kind"], "top"))
        rows = table.filter(is_top).slice(0, top).to_pylist()
        samples = self.store.samples if self.store else []
        for row in rows:
            sample = samples[row["sample"]] if row["sample"] < len(samples) else {}
            row["text"] = str(sample.get("prompt") or sample.get("image") or "")
        return rows

    def neighbors(self, latent: int, name: str, score: str) -> list[tuple[int, float]]:
        """Return a latent's neighbors in the arrays ``name`` and ``score`` of the results, with their scores."""
        if not self.results:
            return []
        (latents,), (scores,) = (self.results.part(array, latent, latent + 1) for array in (name, score))
        return [(int(i), float(s)) for i, s in zip(latents, scores, strict=True) if i >= 0]


def name_marks(text: str) -> str:
    """Replace a tokenizer's special tokens by the words (start) and (end)."""
    return token_text.SPECIAL.sub(lambda mark: "(start)" if mark[0] in STARTS else "(end)", text)


def load_catalog(config: Config, sae_folder: pathlib.Path, n_latents: int) -> Catalog:
    """Read the results of ``revelio interpret`` for an SAE. Without results, latents have only numbers."""
    if not config.run:
        return Catalog("no words for latents: config.run is not set; it must be the folder of the run")
    try:
        loaded = results.load(results.folder_of(config.run))
    except InputError as error:
        return Catalog(str(error))
    # Results of other weights would show wrong words.
    weights = sae_folder / WEIGHTS
    current = files.sha256(weights) if weights.is_file() else ""
    interpreted = str(loaded.summary.get("sae", {}).get("sha256", ""))
    if loaded.summary["latents"] != n_latents or (interpreted and current and interpreted != current):
        return Catalog(f"{loaded.folder} is for another SAE; run revelio interpret again")
    tags: dict[int, list[TableRow]] = {}
    for row in table.to_pylist() if (table := loaded.tags()) else []:
        if row["label"]:  # null if the model gave no label
            tags.setdefault(row["latent"], []).append(row)
    for rows in tags.values():
        rows.sort(key=lambda row: -(row["score"] if row["score"] is not None else 0.0))
    labels = list(loaded.summary.get("labels", []))
    columns = ["words", *(f"{label}.majority" for label in labels)]
    rows = loaded.latents.select(columns).to_pylist()
    texts = tuple(
        "\n".join(text.casefold() for _, text in _descriptions(row, tags.get(i, []), labels))
        for i, row in enumerate(rows)
    )
    frequency = loaded.latents["frequency"].to_numpy()
    try:
        store = open_store(loaded.summary["store"]["location"])
    except (InputError, KeyError, TypeError):
        store = None  # it may have been moved; words and values do not need it
    return Catalog("", loaded, tags, texts, frequency, store)


def _descriptions(row: TableRow, tags: list[TableRow], labels: list[str]) -> list[tuple[str, str]]:
    """Return all texts that describe a latent, with their sources."""
    texts = [("tag", tag["label"]) for tag in tags if tag["label"]]
    if row.get("words"):
        texts.append(("words", name_marks(row["words"])))
    return texts + [(label, row[f"{label}.majority"]) for label in labels if row.get(f"{label}.majority")]


def _match_rank(word: str, text: str) -> int:
    """Return 0 if ``word`` is a whole word of ``text``, 1 if it starts a word, otherwise 2."""
    if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text):
        return 0
    return 1 if re.search(rf"(?<!\w){re.escape(word)}", text) else 2
