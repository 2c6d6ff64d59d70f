"""The labeled prompts for measuring the effect of steering a concept."""

import dataclasses
import random

from revelio_jax.errors import InputError
from revelio_jax.steering.labels import LabeledPrompt, spread

JUDGED = ("style", "category")  # the label columns that the miniatures' judge predicts


@dataclasses.dataclass(frozen=True)
class Bench:
    """A concept, prompts with it, and prompts with another value of the same label.

    ``value`` is the concept, ``column`` its label column, and ``other`` the label column that steering must preserve.
    If ``adding``, the prompts in ``with_concept`` leave ``column`` out, and ``without`` is empty.
    """

    column: str
    value: str
    other: str
    with_concept: list[LabeledPrompt]
    without: list[LabeledPrompt]
    adding: bool = False

    @property
    def prompt_count(self) -> int:
        """Return the number of prompts with and without the concept."""
        return len(self.with_concept) + len(self.without)

    def half(self, start: int) -> "Bench":
        """Return the bench with every second prompt, starting at ``start``, 0 or 1."""
        halves = {name: getattr(self, name)[start::2] for name in ("with_concept", "without")}
        return dataclasses.replace(self, **halves)


def make_bench(labeled: list[LabeledPrompt], column: str, value: str, n: int) -> Bench:
    """Return at most ``n`` prompts with a concept and at most ``n`` without it.

    Prompts with the concept are spread evenly over the other label; prompts without it, over the values of ``column``.

    Raise InputError if the judge does not predict ``column``.
    """
    other = _other(column)
    complete = [row for row in labeled if all(row.values())]  # images of these prompts show all labels
    rng = random.Random(0)
    with_concept = spread([row for row in complete if row[column] == value], other, n, rng)
    without = spread([row for row in complete if row[column] != value], column, n, rng)
    return Bench(column, value, other, with_concept, without)


def make_adding_bench(labeled: list[LabeledPrompt], column: str, value: str, n: int) -> Bench:
    """Return at most ``n`` prompts that leave out only the concept's label.

    Raise InputError if the judge does not predict ``column``.
    """
    rows = [row for row in labeled if [key for key, label in row.items() if not label] == [column]]
    other = _other(column)
    return Bench(column, value, other, spread(rows, other, n, random.Random(0)), [], adding=True)


def _other(column: str) -> str:
    if column not in JUDGED:
        raise InputError(f"--concept has the column {column!r}; the judge predicts only {', '.join(JUDGED)}")
    return JUDGED[1 - JUDGED.index(column)]
