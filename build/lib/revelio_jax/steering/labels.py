"""Labelled prompts, and concepts named by their labels."""

import random

from revelio_jax.errors import InputError
from revelio_jax.inputs.prompts import read_prompts

Labelled = dict[str, str]
"""A prompt and its labels; an empty label says that the prompt does not tell."""


def read_labelled(file: str) -> list[Labelled]:
    """Prompts with their label columns. Raises InputError."""
    if not file:
        raise InputError("config.steer.prompts is empty; it names a file of prompts with label columns")
    return [
        {key: "" if value is None else str(value) for key, value in row.items() if key != "id"}
        for row in read_prompts(file)
    ]


def label_columns(labelled: list[Labelled]) -> list[str]:
    return [key for key in labelled[0] if key != "prompt"] if labelled else []


def parse_concept(concept: str, labelled: list[Labelled]) -> tuple[str, str]:
    """``column=value`` to (column, value). Raises InputError on an unknown one."""
    column, _, value = concept.partition("=")
    if column not in label_columns(labelled):
        known = ", ".join(label_columns(labelled))
        raise InputError(f"--concept is {concept!r}; it must be column=value with a column of {known}")
    values = sorted({row[column] for row in labelled} - {""})
    if value not in values:
        shown = ", ".join(values[:8]) + (", ..." if len(values) > 8 else "")
        raise InputError(f"--concept is {concept!r}; values of {column}: {shown}")
    return column, value


def find_concept(text: str, labelled: list[Labelled]) -> tuple[str, str] | None:
    """(column, value) where a text is the value of a label, else None."""
    for column in label_columns(labelled):
        if any(row[column] == text for row in labelled):
            return column, text
    return None


def spread(rows: list[Labelled], column: str, n: int, rng: random.Random) -> list[Labelled]:
    """``n`` rows drawn at random, as evenly as can be over the values of ``column``."""
    cells: dict[str, list[Labelled]] = {}
    for row in rng.sample(rows, len(rows)):
        cells.setdefault(row[column], []).append(row)
    chosen: list[Labelled] = []
    while len(chosen) < min(n, len(rows)):
        for cell in cells.values():
            if cell and len(chosen) < n:
                chosen.append(cell.pop())
    return chosen
