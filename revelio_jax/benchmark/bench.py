"""The labeled prompts on which the effect of steering a concept is measured."""

import dataclasses
import random

from revelio_jax.errors import InputError
from revelio_jax.steering.labels import LabeledPrompt, spread

JUDGED = ("style", "category")  # the label columns that the miniatures' judge can name


@dataclasses.dataclass(frozen=True)
class Bench:
    """A concept, prompts with it, and prompts with another value of the same label.

    ``column`` is the label that the concept ``value`` belongs to, and ``other`` is the label that steering must keep.
    If ``adding``, ``with_concept`` are prompts that leave ``column`` out, and ``without`` is empty.
    """

    column: str
    value: str
    other: str
    with_concept: list[LabeledPrompt]
    without: list[LabeledPrompt]
    adding: bool = False

    @property
    def prompts(self) -> int:
        """Return the number of prompts of both kinds."""
        return len(self.with_concept) + len(self.without)

    def half(self, start: int) -> "Bench":
        """Return the bench with every second prompt, from ``start``, which is 0 or 1."""
        halves = {name: getattr(self, name)[start::2] for name in ("with_concept", "without")}
        return dataclasses.replace(self, **halves)


def make_bench(labeled: list[LabeledPrompt], column: str, value: str, n: int) -> Bench:
    """Return ``n`` prompts with a concept and ``n`` without it, spread evenly over the other label.

    Raises InputError if no judge can name ``column``.
    """
    other = _other(column)
    complete = [row for row in labeled if all(row.values())]  # their images show all labels
    rng = random.Random(0)
    with_concept = spread([row for row in complete if row[column] == value], other, n, rng)
    without = spread([row for row in complete if row[column] != value], column, n, rng)
    return Bench(column, value, other, with_concept, without)


def make_adding_bench(labeled: list[LabeledPrompt], column: str, value: str, n: int) -> Bench:
    """Return ``n`` prompts that leave out only the concept's label; none if there are no such prompts.

    Raises InputError if no judge can name ``column``.
    """
    rows = [row for row in labeled if [key for key, label in row.items() if not label] == [column]]
    other = _other(column)
    return Bench(column, value, other, spread(rows, other, n, random.Random(0)), [], adding=True)


def _other(column: str) -> str:
    if column not in JUDGED:
        raise InputError(f"a concept of {column} cannot be measured; the judge can name {', '.join(JUDGED)}")
    return JUDGED[1 - JUDGED.index(column)]
