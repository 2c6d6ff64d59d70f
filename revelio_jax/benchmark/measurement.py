"""What steering removes and what it leaves, by a judge's labels.

Two sets of labelled prompts: those that hold the concept, and others that hold another value of the
same label. Every figure is a share of pictures with a bootstrap interval over prompts.
"""

import contextlib
import dataclasses
import random
import typing

import numpy as np
import tqdm

from revelio_jax.config import SteerConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines.sampling import sample
from revelio_jax.steering.labels import LabeledPrompt, spread

FIGURES = {
    "concept": "concept in the picture",
    "kept": "other label right",
    "others_label": "other prompts: its label right",
    "others_kept": "other prompts: other label right",
}


class Judge(typing.Protocol):
    """Names every label of each picture."""

    def label(self, pixels: np.ndarray) -> list[dict[str, str]]: ...


@dataclasses.dataclass(frozen=True)
class Bench:
    """A concept and the prompts that show what steering it does.

    ``column`` is the label that the concept is a value of, ``other`` the label that must be kept. Where
    ``adding``, ``with_concept`` are prompts that do not say the label, and there are no others.
    """

    column: str
    value: str
    other: str
    with_concept: list[LabeledPrompt]
    without: list[LabeledPrompt]
    adding: bool = False

    @property
    def prompts(self) -> int:
        return len(self.with_concept) + len(self.without)

    def half(self, which: int) -> "Bench":
        """Every second prompt, from 0 or from 1."""
        halves = {name: getattr(self, name)[which::2] for name in ("with_concept", "without")}
        return dataclasses.replace(self, **halves)


def make_bench(labelled: list[LabeledPrompt], column: str, value: str, n: int) -> Bench:
    """``n`` prompts with a concept and ``n`` without, spread evenly over the other label."""
    other = _other(column)
    rows = [row for row in labelled if all(row.values())]  # such as say all that they show
    rng = random.Random(0)
    has = spread([row for row in rows if row[column] == value], other, n, rng)
    lacks = spread([row for row in rows if row[column] != value], column, n, rng)
    return Bench(column, value, other, has, lacks)


def make_adding_bench(labelled: list[LabeledPrompt], column: str, value: str, n: int) -> Bench:
    """``n`` prompts that say all but the concept's label; none where there are no such."""
    rows = [row for row in labelled if [key for key, label in row.items() if not label] == [column]]
    other = _other(column)
    return Bench(column, value, other, spread(rows, other, n, random.Random(0)), [], adding=True)


def _other(column: str) -> str:
    judged = ("style", "category")
    if column not in judged:
        raise InputError(f"a concept of {column} cannot be measured; the judge knows {', '.join(judged)}")
    return judged[1 - judged.index(column)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Shares of pictures, per prompt (mean over seeds), as arrays [prompts] in 0 .. 1.

    ``concept``: prompts with the concept, pictures still judged to hold it; ``kept``: the same
    pictures, the other label right. ``others_label`` and ``others_kept``: pictures of the other
    prompts whose own value of the concept's label, and other label, is right.
    """

    concept: np.ndarray
    kept: np.ndarray
    others_label: np.ndarray
    others_kept: np.ndarray

    def half(self, which: int) -> "Outcome":
        """Of every second prompt, from 0 or from 1, as :meth:`Bench.half` takes them."""
        return Outcome(*(getattr(self, name)[which::2] for name in FIGURES))

    def summary(self) -> dict[str, dict[str, float]]:
        return {name: interval(values) for name in FIGURES if len(values := getattr(self, name))}


def measure(
    pipe: typing.Any,
    judge: Judge,
    bench: Bench,
    seeds: list[int],
    settings: SteerConfig,
    steering: typing.ContextManager | None = None,
    progress: tqdm.tqdm | None = None,
) -> Outcome:
    """Sample every prompt with every seed inside ``steering`` and judge the pictures."""
    rows = bench.with_concept + bench.without
    prompts = [row["prompt"] for row in rows for _ in seeds]
    with steering or contextlib.nullcontext():
        pictures = sample(
            pipe,
            prompts,
            seeds * len(rows),
            steps=settings.steps,
            guidance=settings.guidance,
            height=settings.height,
            width=settings.width,
            batch_size=settings.batch_size,
            progress=progress,
        )
    labels = judge.label(pictures)

    def share(column: str, wanted: list[str], first: int) -> np.ndarray:
        got = [label[column] for label in labels[first * len(seeds) : (first + len(wanted)) * len(seeds)]]
        right = [g == w for g, w in zip(got, np.repeat(wanted, len(seeds)), strict=True)]
        return np.array(right, float).reshape(len(wanted), len(seeds)).mean(1)

    n = len(bench.with_concept)
    return Outcome(
        concept=share(bench.column, [bench.value] * n, 0),
        kept=share(bench.other, [row[bench.other] for row in bench.with_concept], 0),
        others_label=share(bench.column, [row[bench.column] for row in bench.without], n),
        others_kept=share(bench.other, [row[bench.other] for row in bench.without], n),
    )


def interval(per_prompt: np.ndarray) -> dict[str, float]:
    """Mean with a 95 % bootstrap interval over prompts."""
    rng = np.random.default_rng(0)
    draws = rng.choice(per_prompt, (2000, len(per_prompt))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"mean": float(per_prompt.mean()), "low": float(low), "high": float(high)}


def worst(steered: Outcome, plain: Outcome) -> float:
    """The worst of the effect and the retentions, each in 0 .. 1; what a strength is chosen by.

    The effect is the share of pictures without the concept; with it, for a bench that adds.
    """
    adding = not len(plain.others_label)
    effect = steered.concept.mean() if adding else 1 - steered.concept.mean()
    retained = [
        getattr(steered, name).mean() / max(getattr(plain, name).mean(), 1e-9)
        for name in list(FIGURES)[1:]
        if len(getattr(plain, name))
    ]
    return float(min(effect, *retained, 1.0))
