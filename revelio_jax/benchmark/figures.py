"""The figures of a benchmark, from the labels of its images: effect, retention and distance, and the chosen strength.

Removal, retention and time are separate figures. Strengths are chosen on other prompts than those that report, so that
the choice does not bias the figures.
"""

import typing
from collections.abc import Mapping, Sequence

import numpy as np

from revelio_jax.benchmark.judgment import DETECTED, NO, YES
from revelio_jax.benchmark.measurement import Interval, Outcome, interval
from revelio_jax.benchmark.resampling import retention_interval, worst_interval
from revelio_jax.benchmark.tasks import CONCEPT, OTHER, Task, TaskPrompt
from revelio_jax.errors import InputError

Labels = Sequence[Mapping[str, str] | None]
"""The labels of the images of the prompts with the roles concept and other, ordered by prompt and then by seed; None
for a flagged image."""


class Figures(typing.TypedDict):
    """The figures of one variant on prompts of a task.

    ``outcome`` has the intervals of :class:`Outcome`. ``distance`` is the root mean squared difference to the plain
    image at the same seed on prompts with the role other, as a share of the range; None without such prompts.
    ``by_set`` is the share of images that show the concept in each prompt set of the role concept. ``worst`` is the
    smallest of the effect and the retentions. ``retention`` is the mean of the retentions, None without one.
    ``flagged`` is the share of images that the pipeline's safety checker replaced; they count for no figure.
    """

    outcome: dict[str, Interval]
    distance: Interval | None
    by_set: dict[str, Interval]
    retention: Interval | None
    worst: Interval
    flagged: float


def measure(task: Task, labels: Labels, plain: Labels, distances: np.ndarray | None, seeds: int) -> Figures:
    """Return the figures of a variant on all prompts of a task, from its ``labels`` and those of the plain pipeline.

    ``distances`` are the distances of the images of the prompts with the role other, [prompts, seeds], or None.
    """
    outcome, unsteered = outcome_of(task, labels, seeds), outcome_of(task, plain, seeds)
    sets = dict.fromkeys(prompt.set for prompt in task.of_role(CONCEPT))
    names = np.array([prompt.set for prompt in task.of_role(CONCEPT)])
    return {
        "outcome": outcome.summary(),
        "distance": None if distances is None or not len(distances) else interval(distances.mean(1)),
        "by_set": {name: interval(values) for name in sets if len(values := _measured(outcome.concept[names == name]))},
        "retention": retention_interval(outcome),
        "worst": worst_interval(outcome, unsteered, task.adding),
        "flagged": sum(label is None for label in labels) / len(labels),
    }


def outcome_of(task: Task, labels: Labels, seeds: int) -> Outcome:
    """Return the outcome of a variant on all prompts. Raise InputError if all images of a role were flagged."""
    concept, others = task.of_role(CONCEPT), task.of_role(OTHER)
    if len(labels) != (count := len(concept) + len(others)) * seeds:
        raise ValueError(f"{len(labels)} labels for {count} prompts and {seeds} seeds")
    first = len(concept) * seeds
    for part in (labels[:first], labels[first:]):
        if len(part) and all(label is None for label in part):
            raise InputError("the safety checker of the pipeline flagged all images, so there is nothing to measure")
    detected = any(label and DETECTED in label for label in labels)
    column, value = (DETECTED, YES) if detected or task.column is None else (task.column, task.value)
    shown = _shares(labels[:first], column, [value] * len(concept), seeds)
    if column == DETECTED:
        empty = np.zeros(0)
        return Outcome(shown, empty, empty, empty, _shares(labels[first:], DETECTED, [NO] * len(others), seeds))
    return Outcome(
        concept=shown,
        kept=_shares(labels[:first], task.other, _expected(concept, task.other), seeds),
        others_label=_shares(labels[first:], column, _expected(others, column), seeds),
        others_kept=_shares(labels[first:], task.other, _expected(others, task.other), seeds),
    )


def choose(worst_figures: Sequence[float], strengths: Sequence[float]) -> int:
    """Return the index of the strength with the best worst figure; the smaller strength wins a tie."""
    return max(range(len(strengths)), key=lambda i: (round(worst_figures[i], 3), -abs(strengths[i])))


def _expected(prompts: Sequence[TaskPrompt], column: str | None) -> list[str | None]:
    return [prompt.labels.get(column) if column else None for prompt in prompts]


def _shares(labels: Labels, column: str | None, expected: Sequence[str | None], seeds: int) -> np.ndarray:
    """Return the share of unflagged images with the expected label for each prompt; NaN without such images.

    Return an empty array if no prompt has an expected label.
    """
    if column is None or not any(expected):
        return np.zeros(0)
    shares = np.full(len(expected), np.nan)
    for number, label in enumerate(expected):
        judged = [each for each in labels[number * seeds : (number + 1) * seeds] if each is not None]
        if label is not None and judged:
            shares[number] = np.mean([each[column] == label for each in judged])
    return shares


def _measured(per_prompt: np.ndarray) -> np.ndarray:
    return per_prompt[~np.isnan(per_prompt)]
