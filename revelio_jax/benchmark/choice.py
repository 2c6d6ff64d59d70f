"""Choose the strength of each method of a benchmark, on prompts that do not report figures.

One seed per prompt is enough to choose, and only the chosen strength draws the images that report: with four strengths
and three seeds this takes a third of the images.
"""

import pathlib
import typing
from collections.abc import Sequence

import numpy as np

from revelio_jax.benchmark.drawing import Worker, draw, shots_of
from revelio_jax.benchmark.figures import Figures, choose, measure
from revelio_jax.benchmark.images import ImageFolder, Shot
from revelio_jax.benchmark.judgments import Judgments
from revelio_jax.benchmark.quality import pixel_rmse
from revelio_jax.benchmark.tasks import CONCEPT, OTHER, Task
from revelio_jax.benchmark.variants import MethodSpec, TaskMethods, Variant
from revelio_jax.config import SteerConfig

SEEDS = 1  # per prompt that chooses


class Choice(typing.NamedTuple):
    """All variants of a task, those that report figures, those that are chosen, and the figures that chose them.

    Without a retention no strength can be chosen: then all variants report, and only those of methods with at most one
    strength are ``chosen``. ``figures`` are by key of the variant, of the prompts of ``task.choosing``.
    """

    variants: list[Variant]
    reported: list[Variant]
    chosen: list[Variant]
    figures: dict[str, Figures]


def shots_that_choose(task: Task) -> list[Shot]:
    """Return the images that every strength of a method draws; none without a retention."""
    return shots_of(task.choosing, SEEDS) if task.has_retention else []


def to_choose_from(variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants of methods with several strengths."""
    return [variant for variant in variants if len(variant.method.strengths) > 1]


def choose_variants(
    task: Task,
    methods: TaskMethods,
    specs: Sequence[MethodSpec],
    folder: pathlib.Path,
    judgments: Judgments,
    steer: SteerConfig,
    worker: Worker | None,
) -> Choice:
    """Draw and judge the images that choose the strengths of a task, and return the variants that report figures."""
    variants, shots = methods.variants(specs), shots_that_choose(task)
    several = to_choose_from(variants)
    if not several or not shots:
        return Choice(variants, variants, [variant for variant in variants if variant not in several], {})
    compared = [plain_of(variants), *several]
    draw(methods, compared, shots, folder, steer, worker)
    figures = measure_variants(task.choosing, compared, folder, judgments, SEEDS)
    chosen: list[Variant] = []
    for spec in specs:
        own = [variant for variant in variants if variant.method is spec]
        if len(own) > 1:
            own = [own[choose([figures[each.key]["worst"]["mean"] for each in own], [each.strength for each in own])]]
        chosen += own
    return Choice(variants, chosen, chosen, figures)


def measure_variants(
    task: Task, variants: Sequence[Variant], folder: pathlib.Path, judgments: Judgments, seeds: int
) -> dict[str, Figures]:
    """Judge the drawn images of a task's roles concept and other, and return the figures of each variant by its key.

    The plain pipeline must be one of the variants.
    """
    shots = [shot for shot in shots_of(task, seeds) if shot.prompt.role in (CONCEPT, OTHER)]
    folders = {variant.key: ImageFolder(folder, variant.key) for variant in variants}
    labels = {key: judgments.labels(images, shots) for key, images in folders.items()}
    plain = plain_of(variants).key
    others = [shot for shot in shots if shot.prompt.role == OTHER]
    return {
        key: measure(task, labels[key], labels[plain], _distances(images, folders[plain], others, seeds), seeds)
        for key, images in folders.items()
    }


def plain_of(variants: Sequence[Variant]) -> Variant:
    """Return the variant of the plain pipeline."""
    return next(variant for variant in variants if variant.method.name == "plain")


def _distances(images: ImageFolder, plain: ImageFolder, shots: list[Shot], seeds: int) -> np.ndarray | None:
    """Return the distance of each image to the plain one, [prompts, seeds]; None without images."""
    if not shots:
        return None
    pairs = [(images.read(shot)[0], plain.read(shot)[0]) for shot in shots]
    return np.array([pixel_rmse(a[None], b[None])[0] for a, b in pairs]).reshape(-1, seeds)
