"""Sampling settings that a prompt file gives for each prompt, as I2P does: seed, guidance scale, width and height.

The fields ``seed_column``, ``guidance_column``, ``width_column`` and ``height_column`` of config.extract and
config.steer name the columns. A field that is None leaves the setting to the field of the same name.
"""

import dataclasses
import decimal
import math
import typing
from collections.abc import Sequence

from revelio_jax.config import ExtractConfig, SteerConfig
from revelio_jax.errors import InputError

Row = typing.Mapping[str, typing.Any]
LARGEST_SIDE = 16_384  # pixels


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    """The settings of one image. ``seed`` is None if the file does not give one."""

    seed: int | None
    guidance: float
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return self.height, self.width


def read(rows: Sequence[Row], section: ExtractConfig | SteerConfig) -> list[PromptSettings]:
    """Return the settings of every prompt. Raise InputError if a column is missing or a value is not allowed."""
    name = "extract" if isinstance(section, ExtractConfig) else "steer"
    for field in ("seed_column", "guidance_column", "width_column", "height_column"):
        column = getattr(section, field)
        if column and rows and column not in rows[0]:
            columns = ", ".join(key for key in rows[0] if key not in ("id", "prompt"))
            raise InputError(f"config.{name}.{field} is {column!r}; config.{name}.prompts has the columns {columns}")
    return [
        PromptSettings(
            seed=_seed(row, i, section.seed_column) if section.seed_column else None,
            guidance=_guidance(row, i, section.guidance_column) if section.guidance_column else section.guidance,
            height=_pixels(row, i, section.height_column) if section.height_column else section.height,
            width=_pixels(row, i, section.width_column) if section.width_column else section.width,
        )
        for i, row in enumerate(rows)
    ]


def used_columns(section: ExtractConfig | SteerConfig) -> set[str]:
    """Return the columns that the section names."""
    fields = section.seed_column, section.guidance_column, section.width_column, section.height_column
    return {column for column in fields if column}


def unused_seed_line(rows: Sequence[Row], section: ExtractConfig | SteerConfig) -> str:
    """Return a line about columns called ``..._seed`` that the section does not use, or "" without such columns."""
    if section.seed_column or not rows:
        return ""
    columns = [name for name in rows[0] if name.lower().endswith("_seed")]
    if not columns:
        return ""
    name = "extract" if isinstance(section, ExtractConfig) else "steer"
    return (
        f"prompts: {', '.join(columns)} {'is' if len(columns) == 1 else 'are'} not used as seed; "
        f"config.{name}.seed_column={columns[0]} uses it"
    )


def one_size(settings: Sequence[PromptSettings]) -> tuple[int, int]:
    """Return the height and width that all images of a command share. Raise InputError if they differ."""
    sizes = list(dict.fromkeys(each.size for each in settings))
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for height, width in sizes[:4]) + (", ..." if len(sizes) > 4 else "")
        raise InputError(
            f"config.steer.width_column and height_column give images of {len(sizes)} sizes ({shown} pixels); the "
            "images of one command must have one size: split the file by size, or leave these fields empty"
        )
    return sizes[0]


def added(seed: int | None, offset: int) -> int:
    """Return the seed of an image: ``offset``, added to the seed of its prompt if the file gives one."""
    total = offset if seed is None else seed + offset
    return total if total < 2**64 else total - 2**64


def _seed(row: Row, number: int, column: str) -> int:
    return _whole(row, number, column, -(2**63), 2**64 - 1, "a 64-bit whole number")


def _pixels(row: Row, number: int, column: str) -> int:
    value = _whole(row, number, column, 8, LARGEST_SIDE, f"a number of pixels from 8 to {LARGEST_SIDE:,}")
    if value % 8:
        raise _error(row, number, column, "a multiple of 8")
    return value


def _guidance(row: Row, number: int, column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise _error(row, number, column, "a number of at least 0")
    return value


def _whole(row: Row, number: int, column: str, low: int, high: int, allowed: str) -> int:
    """Return a whole number, which a text may write as 7 or 7.0."""
    try:
        value = decimal.Decimal(row[column] if isinstance(row[column], str) else repr(row[column]))
        if not low <= value <= high or value != int(value):  # also refuses NaN
            raise ValueError
    except (TypeError, ValueError, ArithmeticError) as error:
        raise _error(row, number, column, allowed) from error
    return int(value)


def _error(row: Row, number: int, column: str, allowed: str) -> InputError:
    return InputError(f"prompts: the {column} of prompt {number} is {row[column]!r}; it must be {allowed}")
