"""What a model is shown of a latent, and what is held out to try its label on."""

import dataclasses
import itertools
import typing
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow

from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents.results import Results, store_of
from revelio_jax.interpret.sample_images import ImageReader, open_images
from revelio_jax.interpret.tags import annotation

SEED = 6
FEWEST = 4  # held out samples on either side, below which a score says nothing


class Exhibit(typing.NamedTuple):
    """A sample as it is shown: a PNG, or a text where there are no pictures."""

    sample: int
    picture: bytes | None
    text: str


class HeldOut(typing.NamedTuple):
    exhibit: Exhibit
    fires: bool


@dataclasses.dataclass(frozen=True, eq=False)
class LatentEvidence:
    """Results, the samples of their store, and its pictures.

    ``samples`` has a prompt and, of texts, the tokens; ``pictures`` is None of texts.
    """

    found: Results
    samples: pyarrow.Table
    pictures: ImageReader | None
    fires: np.ndarray
    drawn: np.ndarray
    first: np.ndarray

    @property
    def kind(self) -> str:
        """ "image" or "text"."""
        return self.found.facts["kind"]

    @property
    def has_maps(self) -> bool:
        return bool(self.found.facts["grid"])

    def kept(self, latent: int) -> list[dict[str, typing.Any]]:
        """The samples kept of a latent: rows of the results' table."""
        start, stop = self.first[latent : latent + 2]
        return self.found.samples.slice(start, stop - start).to_pylist()

    def shown(self, latent: int, count: int) -> list[Exhibit]:
        """The strongest samples, at most ``count``, with what fires marked; a broken picture is left out."""
        top = [row for row in self.kept(latent) if row["kind"] == "top"]
        profiles = self.found.part("profile", latent, latent + 1)[0]
        exhibits = (self._marked(row, profiles[row["rank"]]) for row in top)
        return _first(exhibits, count)

    def held_out(self, latent: int, shown: Sequence[Exhibit], count: int) -> list[HeldOut]:
        """``count`` samples that were not shown, as they are, half of them firing, in random order.

        Those that fire are, as far as they go, a fair draw: of the samples that were drawn at random, those
        on which it fires. Of a rare latent come those kept of lower quantiles, then of the strongest that
        were not shown, the weakest first. Fewer, and always the same number of both kinds, where there are
        no more; none where there are less than FEWEST of a kind.
        """
        random = np.random.default_rng([SEED, latent])
        kept = self.kept(latent)
        seen = {exhibit.sample for exhibit in shown}
        known = {row["sample"] for row in kept} | seen
        order = random.permutation(len(self.drawn))
        fires = [int(self.drawn[i]) for i in order if self.fires[latent, i]]
        silent = [int(self.drawn[i]) for i in order if not self.fires[latent, i]]
        weaker = [row["sample"] for row in kept if row["kind"] == "weaker"]
        top = [row["sample"] for row in kept if row["kind"] == "top"]
        fires = [number for number in dict.fromkeys(fires + weaker + top[::-1]) if number not in seen]
        silent = [number for number in silent if number not in known]
        half = min(count // 2, len(fires), len(silent))
        if half < FEWEST:
            return []
        parts = [_first((self._plain(number) for number in numbers), half) for numbers in (fires, silent)]
        half = min(map(len, parts))  # without broken pictures
        if half < FEWEST:
            return []
        held = [
            HeldOut(exhibit, fires) for part, fires in zip(parts, (True, False), strict=True) for exhibit in part[:half]
        ]
        return [held[i] for i in random.permutation(len(held))]

    def _marked(self, row: dict[str, typing.Any], profile_C: np.ndarray) -> Exhibit | None:
        number = row["sample"]
        if self.pictures is None:
            return Exhibit(number, None, self._marked_text(number, profile_C, row["position"]))
        picture = self.pictures(number)
        if picture is None:
            return None
        if not self.has_maps:
            return Exhibit(number, annotation.png(annotation.panel(picture)), "")
        heat_HW = unfolded(profile_C, self.found.facts["cells"], self.found.facts["grid"]) / 255
        peak = divmod(row["position"], heat_HW.shape[1])
        return Exhibit(number, annotation.png(annotation.panel(picture, heat_HW, peak)), "")

    def _plain(self, number: int) -> Exhibit | None:
        if self.pictures is None:
            tokens = self._tokens(number)
            return Exhibit(number, None, annotation.plain_text(tokens) if tokens else self._prompt(number))
        picture = self.pictures(number)
        return picture and Exhibit(number, annotation.png(annotation.panel(picture)), "")

    def _marked_text(self, number: int, profile_C: np.ndarray, position: int) -> str:
        tokens = self._tokens(number)
        if not tokens:
            return self._prompt(number)
        positions = self.found.facts["positions"]
        shade_P = unfolded(profile_C, self.found.facts["cells"], (1, positions))[0]
        return annotation.cut(annotation.text(tokens, shade_P, position))

    def _tokens(self, number: int) -> list[str] | None:
        column = self.found.facts["tokens"]
        return self.samples[column][number].as_py() if column else None

    def _prompt(self, number: int) -> str:
        return annotation.cut(str(self.samples["prompt"][number].as_py() or ""))


def open_material(found: Results, extract: ExtractConfig) -> LatentEvidence:
    """Open what results were made of. Raises InputError where pictures are needed and not there."""
    facts = found.facts
    store = store_of(found)
    pictures = None
    if facts["kind"] == "image":
        pictures = open_images(store, extract)
        if pictures is None:
            raise InputError(
                f"store {store.location} has no pictures, which tags are made from; extract with "
                "config.extract.save_images=True"
            )
    samples = store.table()
    columns = [facts["tokens"] or "prompt", "prompt"] if pictures is None else []
    if missing := set(columns) - set(samples.column_names):
        raise InputError(f"store {store.location} has no column {missing.pop()!r}, which tags are made from")
    first = np.searchsorted(found.samples["latent"].to_numpy(), np.arange(facts["latents"] + 1))
    samples = samples.select(sorted(set(columns)))
    return LatentEvidence(found, samples, pictures, found.array("fires"), found.array("drawn"), first)


def unfolded(profile_C: np.ndarray, cells: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """A map [height, width] of the positions from its cells, each a square of them; see layout.make_cells."""
    side = next(n for n in range(1, max(grid) + 1) if [-(-length // n) for length in grid] == list(cells))
    folded = profile_C.reshape(tuple(cells))
    return folded.repeat(side, 0).repeat(side, 1)[: grid[0], : grid[1]]


def choose(found: Results, count: int) -> list[int]:
    """``count`` latents at random of those that fire, 0 is all; a larger count holds those of a smaller."""
    firing = np.flatnonzero(found.latents["rows"].to_numpy() > 0)
    drawn = np.random.default_rng(SEED).permutation(firing)
    return sorted(drawn[: count or len(drawn)].tolist())


def _first(exhibits: Iterable[Exhibit | None], count: int) -> list[Exhibit]:
    """The first ``count`` that are there; no more are made."""
    return list(itertools.islice((exhibit for exhibit in exhibits if exhibit is not None), count))
