"""Declare a field of the configuration: its default, its help text and its allowed values."""

import dataclasses
import typing


def field(
    default: typing.Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    multiple: int = 1,
) -> typing.Any:
    """Return a dataclass field whose metadata :func:`revelio_jax.config.resolve` checks values against.

    ``low`` and ``high`` are inclusive. ``multiple`` restricts a whole number to its multiples. They and ``choices``
    do not apply to fields that hold tuples, which ``__post_init__`` checks.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "multiple": multiple}
    return dataclasses.field(default=default, metadata=metadata)
