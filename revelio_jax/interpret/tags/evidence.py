"""Select the samples of a latent to show to a model, and the held-out samples to score its label on."""

import dataclasses
import itertools
import typing
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow

from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.interpret import token_text
from revelio_jax.interpret.latents.results import Results, open_store_of
from revelio_jax.interpret.sample_images import ImageReader, open_images
from revelio_jax.interpret.tags import annotation

SEED = 6
FEWEST = 4  # smallest number of firing and of silent held-out samples for a score


class ShownSample(typing.NamedTuple):
    """A sample as the model sees it: an image as a PNG file, or a text and no image."""

    sample: int
    image: bytes | None
    text: str


class HeldOutSample(typing.NamedTuple):
    """A held-out sample, and whether the latent fires on it."""

    shown: ShownSample
    fires: bool


@dataclasses.dataclass(frozen=True, eq=False)
class LatentEvidence:
    """The results of a run with the samples and images of its store.

    ``samples`` has the prompts and tokens of texts. ``images`` is a reader of the images, None for texts.
    ``random_samples`` [R] are the numbers of random samples; ``fires`` [F, R] is whether a latent fires on each.
    ``offsets`` [F + 1] is where the recorded samples of each latent begin in the table of the results.
    """

    results: Results
    samples: pyarrow.Table
    images: ImageReader | None
    fires: np.ndarray
    random_samples: np.ndarray
    offsets: np.ndarray

    @property
    def kind(self) -> str:
        """Return the kind of the samples: "image" or "text"."""
        return self.results.summary["kind"]

    @property
    def has_maps(self) -> bool:
        return bool(self.results.summary["grid"])

    def recorded_samples(self, latent: int) -> list[dict[str, typing.Any]]:
        """Return the recorded samples of a latent: rows of the results' table."""
        start, stop = self.offsets[latent : latent + 2]
        return self.results.samples.slice(start, stop - start).to_pylist()

    def top_samples(self, latent: int, count: int) -> list[ShownSample]:
        """Return at most ``count`` top samples, marked where the latent fires; skip images that cannot be decoded."""
        top = [row for row in self.recorded_samples(latent) if row["kind"] == "top"]
        profiles = self.results.part("profile", latent, latent + 1)[0]
        samples = (self._marked(row, profiles[row["rank"]]) for row in top)
        return _first(samples, count)

    def held_out_samples(
        self, latent: int, shown: Sequence[ShownSample], count: int, hard: bool = False
    ) -> list[HeldOutSample]:
        """Return ``count`` unmarked samples that are not in ``shown``, in random order; the latent fires on half.

        Firing samples come from the random samples first. If these are too few, for example for a rare latent, recorded
        samples of lower quantiles follow, then the remaining top samples, weakest first. With too few samples of one
        kind both halves shrink. With fewer than FEWEST of one kind the list is empty.

        With ``hard``, a neighbor of the latent fires on each silent sample: a latent with a similar decoder row or one
        that fires on the same rows. The firing samples are the same as without ``hard``, or the first of them.
        """
        random = np.random.default_rng([SEED, latent])
        recorded = self.recorded_samples(latent)
        seen = {sample.sample for sample in shown}
        not_silent = {row["sample"] for row in recorded} | seen
        order = random.permutation(len(self.random_samples))
        firing = [int(self.random_samples[i]) for i in order if self.fires[latent, i]]
        is_silent = ~self.fires[latent]
        if hard:
            is_silent &= self.fires[self._neighbors(latent)].any(0)
        silent = [int(self.random_samples[i]) for i in order if is_silent[i]]
        weaker = [row["sample"] for row in recorded if row["kind"] == "weaker"]
        top = [row["sample"] for row in recorded if row["kind"] == "top"]
        firing = [number for number in dict.fromkeys(firing + weaker + top[::-1]) if number not in seen]
        silent = [number for number in silent if number not in not_silent]
        half = min(count // 2, len(firing), len(silent))
        if half < FEWEST:
            return []
        parts = [_first((self._plain(number) for number in numbers), half) for numbers in (firing, silent)]
        half = min(map(len, parts))  # fewer if images cannot be decoded
        if half < FEWEST:
            return []
        samples = [
            HeldOutSample(sample, fires)
            for part, fires in zip(parts, (True, False), strict=True)
            for sample in part[:half]
        ]
        return [samples[i] for i in random.permutation(len(samples))]

    def fuzzed_samples(self, latent: int, shown: Sequence[ShownSample], count: int) -> list[HeldOutSample]:
        """Return ``count`` texts with marked words that are not in ``shown``, in random order.

        They are top samples. In half of them the words on which the latent fires are marked. In the others, as many
        random words on which it does not fire are marked, and ``fires`` is False. With fewer than FEWEST of one kind
        the list is empty, also for images and for texts without tokens.
        """
        if self.images is not None or not self.results.summary["tokens"]:
            return []
        random = np.random.default_rng([SEED, latent, 1])
        seen = {sample.sample for sample in shown}
        rows = [row for row in self.recorded_samples(latent) if row["kind"] == "top" and row["sample"] not in seen]
        rows = [rows[i] for i in random.permutation(len(rows))[:count]]
        profiles = self.results.part("profile", latent, latent + 1)[0]
        samples: list[HeldOutSample] = []
        for row in rows:
            is_right = sum(sample.fires for sample in samples) * 2 <= len(samples)
            text = self._marked_text(
                row["sample"], profiles[row["rank"]], row["position"], None if is_right else random
            )
            if text:
                samples.append(HeldOutSample(ShownSample(row["sample"], None, text), is_right))
        kinds = [sample.fires for sample in samples]
        return samples if min(kinds.count(True), kinds.count(False)) >= FEWEST else []

    def _neighbors(self, latent: int) -> np.ndarray:
        """Return the latents with a similar decoder row and those that fire on the same rows."""
        near = [self.results.part(name, latent, latent + 1)[0] for name in ("nearest", "coactive")]
        return np.unique([other for other in np.concatenate(near) if other >= 0]).astype(np.int64)

    def _marked(self, row: dict[str, typing.Any], profile_C: np.ndarray) -> ShownSample | None:
        number = row["sample"]
        if self.images is None:
            return ShownSample(number, None, self._marked_text(number, profile_C, row["position"]))
        image = self.images(number)
        if image is None:
            return None
        grid = self.results.summary["grid"]
        if not self.has_maps or grid is None:
            return ShownSample(number, annotation.png(annotation.panel(image)), "")
        heat_HW = unfold(profile_C, self.results.summary["cells"], grid) / 255
        peak = divmod(row["position"], heat_HW.shape[1])
        return ShownSample(number, annotation.png(annotation.panel(image, heat_HW, peak)), "")

    def _plain(self, number: int) -> ShownSample | None:
        if self.images is None:
            tokens = self._tokens(number)
            return ShownSample(number, None, annotation.plain_text(tokens) if tokens else self._prompt(number))
        image = self.images(number)
        return image and ShownSample(number, annotation.png(annotation.panel(image)), "")

    def _marked_text(
        self, number: int, profile_C: np.ndarray, position: int, wrong: np.random.Generator | None = None
    ) -> str:
        """Return a prompt with marks where the latent fires; with ``wrong``, at random other words, "" without any."""
        tokens = self._tokens(number)
        if not tokens:
            return self._prompt(number)
        positions = self.results.summary["positions"]
        shade_P = unfold(profile_C, self.results.summary["cells"], (1, positions))[0]
        if wrong:
            silent = [i for i in np.flatnonzero(shade_P[: len(tokens)] == 0) if not token_text.is_special(tokens[i])]
            count = min(max(1, int((shade_P[: len(tokens)] >= annotation.FIRES).sum())), len(silent))
            if not count:
                return ""
            marked = np.sort(wrong.choice(silent, count, replace=False))
            shade_P, position = np.zeros_like(shade_P), int(marked[0])
            shade_P[marked] = 255
        return annotation.truncate(annotation.text(tokens, shade_P, position))

    def _tokens(self, number: int) -> list[str] | None:
        column = self.results.summary["tokens"]
        return self.samples[column][number].as_py() if column else None

    def _prompt(self, number: int) -> str:
        return annotation.truncate(str(self.samples["prompt"][number].as_py() or ""))


def open_evidence(results: Results, extract: ExtractConfig) -> LatentEvidence:
    """Open the store that the results were read from. Raise InputError if it has no images or prompts."""
    summary = results.summary
    store = open_store_of(results)
    images = None
    if summary["kind"] == "image":
        images = open_images(store, extract)
        if images is None:
            raise InputError(
                f"store {store.location} has no images, which tags require; extract it again with "
                "config.extract.save_images=True"
            )
    samples = store.table()
    columns = [summary["tokens"] or "prompt", "prompt"] if images is None else []
    if missing := set(columns) - set(samples.column_names):
        raise InputError(f"store {store.location} has no column {missing.pop()!r}, which tags require")
    offsets = np.searchsorted(results.samples["latent"].to_numpy(), np.arange(summary["latents"] + 1))
    samples = samples.select(sorted(set(columns)))
    return LatentEvidence(results, samples, images, results.array("fires"), results.array("drawn"), offsets)


def unfold(profile_C: np.ndarray, cells: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """Expand a map of cells to a map [height, width] of positions, the inverse of layout.make_map."""
    side = next(n for n in range(1, max(grid) + 1) if [-(-length // n) for length in grid] == list(cells))
    folded = profile_C.reshape(tuple(cells))
    return folded.repeat(side, 0).repeat(side, 1)[: grid[0], : grid[1]]


def random_latents(results: Results, count: int | None) -> list[int]:
    """Return ``count`` random latents that fire, None for all. A larger count includes the latents of a smaller one."""
    firing = np.flatnonzero(results.latents["rows"].to_numpy() > 0)
    order = np.random.default_rng(SEED).permutation(firing)
    return sorted(order[: count or len(order)].tolist())


def _first(samples: Iterable[ShownSample | None], count: int) -> list[ShownSample]:
    """Return the first ``count`` samples that are not None, without reading more."""
    return list(itertools.islice((sample for sample in samples if sample is not None), count))
