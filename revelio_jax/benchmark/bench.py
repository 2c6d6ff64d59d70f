"""The labeled prompts for measuring the effect of steering a concept."""

import dataclasses
import random
from collections.abc import Sequence

from revelio_jax.benchmark.judgment import DETECTED
from revelio_jax.errors import InputError
from revelio_jax.steering.labels import LabeledPrompt, label_columns, spread


@dataclasses.dataclass(frozen=True)
class Bench:
    """A concept, prompts with it, and prompts with another value of the same label.

    ``value`` is the concept, ``column`` its label column, and ``other`` the label column that steering must preserve,
    None if the judge predicts no other one. ``column`` is None if the concept is not a label; all prompts then count as
    prompts with the concept. If ``adding``, the prompts in ``with_concept`` leave ``column`` out, and ``without`` is
    empty. If ``detected``, the judge does not predict ``column``: it only detects the concept.
    """

    column: str | None
    value: str
    other: str | None
    with_concept: list[LabeledPrompt]
    without: list[LabeledPrompt]
    adding: bool = False
    detected: bool = False

    @property
    def prompt_count(self) -> int:
        """Return the number of prompts with and without the concept."""
        return len(self.with_concept) + len(self.without)

    def half(self, start: int) -> "Bench":
        """Return the bench with every second prompt, starting at ``start``, 0 or 1."""
        halves = {name: getattr(self, name)[start::2] for name in ("with_concept", "without")}
        return dataclasses.replace(self, **halves)


def make_bench(labeled: list[LabeledPrompt], column: str | None, value: str, n: int, judged: tuple[str, ...]) -> Bench:
    """Return at most ``n`` prompts with a concept and at most ``n`` without it.

    ``judged`` are the columns of the judge. Prompts with the concept are spread evenly over the other label; prompts
    without it, over the values of ``column``. If the judge detects the concept, prompts need no other label.

    Raise InputError if the judge does not predict ``column``, or if no prompt with the concept has all labels.
    """
    check_column(column, judged)
    rng = random.Random(0)
    detected = judged == (DETECTED,)
    if column is None:
        return Bench(None, value, None, rng.sample(labeled, min(n, len(labeled))), [], detected=True)
    other = _other(labeled, column, judged)
    # Images of complete prompts show all labels.
    usable = [row for row in labeled if (row[column] if detected else all(row.values()))]
    with_concept = spread([row for row in usable if row[column] == value], other or column, n, rng)
    without = spread([row for row in usable if row[column] != value], column, n, rng)
    if not with_concept:
        raise InputError(f"--concept is '{column}={value}'; no prompt with it has a value for every label")
    return Bench(column, value, other, with_concept, without, detected=detected)


def make_adding_bench(labeled: list[LabeledPrompt], column: str, value: str, n: int, judged: tuple[str, ...]) -> Bench:
    """Return at most ``n`` prompts that leave out only the concept's label. ``judged`` are the columns of the judge.

    Raise InputError if the judge does not predict ``column``.
    """
    check_column(column, judged)
    rows = [row for row in labeled if [key for key, label in row.items() if not label] == [column]]
    other = _other(labeled, column, judged)
    prompts = spread(rows, other or column, n, random.Random(0))
    return Bench(column, value, other, prompts, [], adding=True, detected=judged == (DETECTED,))


def check_column(column: str | None, judged: Sequence[str]) -> None:
    """Raise InputError if a judge of the columns ``judged`` can measure no concept that is a label of ``column``."""
    if DETECTED not in judged and column not in judged:
        raise InputError(f"--concept has the column {column!r}; the judge predicts only {', '.join(judged)}")


def _other(labeled: list[LabeledPrompt], column: str, judged: tuple[str, ...]) -> str | None:
    """Return the other label column of the prompts that the judge predicts."""
    return next((each for each in judged if each != column and each in label_columns(labeled)), None)
