"""Read labeled prompts, and find the concepts that their labels name."""

import random

from revelio_jax.errors import InputError
from revelio_jax.inputs.prompts import read_prompts

LabeledPrompt = dict[str, str]
"""A prompt and its labels by column; an empty label means that the prompt does not determine it."""


def read_labeled(file: str | None) -> list[LabeledPrompt]:
    """Read prompts with their label columns. Raise InputError if the file is missing or malformed."""
    if not file:
        raise InputError("config.steer.prompts is not set; it must be a file of prompts with label columns")
    return [
        {key: "" if value is None else str(value) for key, value in row.items() if key != "id"}
        for row in read_prompts(file)
    ]


def label_columns(labeled: list[LabeledPrompt]) -> list[str]:
    """Return the names of the label columns."""
    return [key for key in labeled[0] if key != "prompt"] if labeled else []


def parse_concept(concept: str, labeled: list[LabeledPrompt]) -> tuple[str, str]:
    """Split ``column=value`` into (column, value). Raise InputError if no prompt has that label."""
    column, _, value = concept.partition("=")
    if column not in label_columns(labeled):
        known = ", ".join(label_columns(labeled))
        raise InputError(f"--concept is {concept!r}; it must be column=value with one of the columns {known}")
    values = sorted({row[column] for row in labeled} - {""})
    if value not in values:
        shown = ", ".join(values[:8]) + (", ..." if len(values) > 8 else "")
        raise InputError(f"--concept is {concept!r}; values of {column}: {shown}")
    return column, value


def find_concept(text: str, labeled: list[LabeledPrompt]) -> tuple[str, str] | None:
    """Return (column, value) if a text is the value of a label, otherwise None."""
    for column in label_columns(labeled):
        if any(row[column] == text for row in labeled):
            return column, text
    return None


def spread(rows: list[LabeledPrompt], column: str, n: int, rng: random.Random) -> list[LabeledPrompt]:
    """Return ``n`` random rows, spread evenly over the values of ``column`` as far as possible."""
    cells: dict[str, list[LabeledPrompt]] = {}
    for row in rng.sample(rows, len(rows)):
        cells.setdefault(row[column], []).append(row)
    chosen: list[LabeledPrompt] = []
    while len(chosen) < min(n, len(rows)):
        for cell in cells.values():
            if cell and len(chosen) < n:
                chosen.append(cell.pop())
    return chosen
