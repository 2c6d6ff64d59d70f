"""Measure the effect and the retention of steering with the labels of a judge.

Every figure is a share of images, with a bootstrap interval over the prompts of a :class:`Bench`.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Mapping

import numpy as np
import tqdm

from revelio_jax.benchmark.bench import Bench
from revelio_jax.benchmark.judgment import DETECTED, NO, YES, Judge
from revelio_jax.config import SteerConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs import prompt_settings
from revelio_jax.pipelines.sampling import sample

FIGURES = {
    "concept": "concept in the image",
    "kept": "other label correct",
    "others_label": "other prompts: same label correct",
    "others_kept": "other prompts: other label correct",
    "others_absent": "other prompts: concept not in the image",
}


class Interval(typing.TypedDict):
    """A mean over prompts, in 0 .. 1, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


class Maximum(typing.TypedDict):
    """The largest removal of a sweep, as a share of images, and its strength."""

    strength: float
    removal: float


class Suggestion(typing.TypedDict):
    """The smallest strength whose removal reaches ``wanted``, a share of images.

    ``chosen_at`` is the removal on the prompts that chose the strength; ``reported`` has the figures on the other
    prompts. Both and ``strength`` are None if no strength reaches ``wanted``. ``most`` is the largest removal.
    """

    wanted: float
    strength: float | None
    chosen_at: float | None
    most: Maximum
    reported: dict[str, Interval] | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Shares of images per prompt, as arrays [prompts] in 0 .. 1; each is a mean over seeds.

    Prompts with the concept: ``concept`` is the share of images in which the judge sees the concept, ``kept`` the share
    with the correct other label. Other prompts: ``others_label`` is the share with the correct label of the concept's
    column, ``others_kept`` the share with the correct other label. A judge that only detects the concept measures
    ``concept`` and ``others_absent``, the share of images of other prompts in which it does not see the concept.

    Images that the pipeline's safety checker flagged are left out. A prompt without other images is NaN. A figure that
    the judge cannot measure is empty.
    """

    concept: np.ndarray
    kept: np.ndarray
    others_label: np.ndarray
    others_kept: np.ndarray
    others_absent: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    def mean(self, figure: str) -> float:
        """Return the mean of a figure over its prompts."""
        return float(_measured(getattr(self, figure)).mean())

    def half(self, start: int) -> "Outcome":
        """Return the outcome on every second prompt, starting at ``start``, 0 or 1."""
        return Outcome(*(getattr(self, name)[start::2] for name in FIGURES))

    def summary(self) -> dict[str, Interval]:
        """Return the interval of each figure that has at least one prompt."""
        return {name: interval(values) for name in FIGURES if len(values := _measured(getattr(self, name)))}


def measure(
    pipe: typing.Any,
    judge: Judge,
    bench: Bench,
    seeds: list[int],
    settings: SteerConfig,
    steering: typing.ContextManager[object] | None = None,
    progress: tqdm.tqdm | None = None,
) -> Outcome:
    """Sample every prompt with every seed inside the context ``steering``, and judge the images.

    If ``settings`` names a column of seeds, ``seeds`` are added to the seed of each prompt. Raise InputError if the
    pipeline's safety checker flags all images of the prompts with or without the concept.
    """
    rows = bench.with_concept + bench.without
    prompts = [row["prompt"] for row in rows for _ in seeds]
    own = prompt_settings.read(rows, settings)
    height, width = prompt_settings.one_size(own)
    with steering or contextlib.nullcontext():
        sampled = sample(
            pipe,
            prompts,
            [prompt_settings.added(each.seed, seed) for each in own for seed in seeds],
            steps=settings.steps,
            guidance=[each.guidance for each in own for _ in seeds],
            height=height,
            width=width,
            batch_size=settings.batch_size,
            progress=progress,
        )
    labels = [judgment.labels for judgment in judge.judge(sampled.images)]
    counted = ~sampled.flagged.reshape(len(rows), len(seeds))
    for part in (counted[: len(bench.with_concept)], counted[len(bench.with_concept) :]):
        if len(part) and not part.any():
            raise InputError("the safety checker of the pipeline flagged all images, so there is nothing to measure")

    def share(column: str, expected: list[str], first: int) -> np.ndarray:
        """Return the share of images with the expected label for each prompt, starting at prompt ``first``."""
        judged = [label[column] for label in labels[first * len(seeds) : (first + len(expected)) * len(seeds)]]
        correct = [j == e for j, e in zip(judged, np.repeat(expected, len(seeds)), strict=True)]
        use = counted[first : first + len(expected)]
        correct, count = np.array(correct, float).reshape(use.shape) * use, use.sum(1)
        return np.where(count > 0, correct.sum(1) / np.maximum(count, 1), np.nan)

    n, unmeasured = len(bench.with_concept), np.zeros(0)
    if bench.detected or bench.column is None:
        concept = share(DETECTED, [YES] * n, 0)
        absent = share(DETECTED, [NO] * len(bench.without), n)
        return Outcome(concept, unmeasured, unmeasured, unmeasured, absent)
    other = bench.other
    return Outcome(
        concept=share(bench.column, [bench.value] * n, 0),
        kept=share(other, [row[other] for row in bench.with_concept], 0) if other else unmeasured,
        others_label=share(bench.column, [row[bench.column] for row in bench.without], n),
        others_kept=share(other, [row[other] for row in bench.without], n) if other else unmeasured,
    )


def figure_names(summary: Mapping[str, typing.Any]) -> dict[str, str]:
    """Return the names of the figures in the summary of an outcome, by figure."""
    return {name: text for name, text in FIGURES.items() if name in summary}


def _measured(per_prompt: np.ndarray) -> np.ndarray:
    """Return the values of the prompts that have at least one image."""
    return per_prompt[~np.isnan(per_prompt)]


def interval(per_prompt: np.ndarray) -> Interval:
    """Return the mean of values [prompts] with its 95 % bootstrap interval over prompts."""
    rng = np.random.default_rng(0)
    draws = rng.choice(per_prompt, (2000, len(per_prompt))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"mean": float(per_prompt.mean()), "low": float(low), "high": float(high)}


def worst(steered: Outcome, plain: Outcome, adding: bool = False) -> float:
    """Return the smallest of the effect and the retentions, each in 0 .. 1. Strengths are chosen to maximize it.

    The effect is the share of images without the concept, or with the concept if ``adding``. A retention is a figure of
    ``steered`` divided by the same figure of ``plain``.
    """
    effect = steered.mean("concept") if adding else 1 - steered.mean("concept")
    retained = [
        steered.mean(name) / max(plain.mean(name), 1e-9) for name in list(FIGURES)[1:] if len(getattr(plain, name))
    ]
    return float(min(effect, *retained, 1.0))
