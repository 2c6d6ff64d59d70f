"""The layout of the rows of a hook point: text or image, positions, their map, and strata."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pyarrow
import pyarrow.types

from revelio_jax.errors import InputError
from revelio_jax.interpret.latents.purity import as_label
from revelio_jax.pipelines import hook_points
from revelio_jax.store import SiteReader, Store

MOST_STRATA = 100  # largest number of values of the column config.interpret.stratum
INDEX_ROWS = 1 << 20  # rows of an index array that are read together


@dataclasses.dataclass(frozen=True, eq=False)
class Strata:
    """Groups of rows that are reported separately: by timestep, by a column of the samples, or none.

    ``names`` are the names of the strata. Strata by timestep have ``timesteps``, int32 [strata]. Strata by column
    have ``of_sample``, int32 [samples], the stratum of each sample, -1 without one. Both are None without strata.
    """

    column: str = ""
    names: tuple[str, ...] = ()
    timesteps: np.ndarray | None = None
    of_sample: np.ndarray | None = None

    @property
    def counted(self) -> int:
        """Return the number of strata to count: at least one, and one more for samples without a stratum."""
        return len(self.names) + (self.of_sample is not None) or 1


@dataclasses.dataclass(frozen=True, eq=False)
class PositionMap:
    """The positions of a sample as a map of cells.

    ``grid`` is the height and width of the positions, None if they do not form a map. ``shape`` is the height and
    width in cells, after maxima over squares of positions; [1, cells] without a grid. ``cell_of_position``, int32
    [positions], is the cell of each position.
    """

    grid: tuple[int, int] | None
    shape: tuple[int, int]
    cell_of_position: np.ndarray


def positions_and_timesteps(site: SiteReader) -> tuple[int, list[int]]:
    """Return the number of positions (the largest + 1) and all timesteps, ascending; -1 means no timestep.

    The function reads two index arrays, together 8 bytes per row, at 10 million rows per second or more.
    """
    last, timesteps = 0, set()
    for start, stop in join_chunks(site.chunks, INDEX_ROWS):
        last = max(last, int(site.read_index("position", start, stop).max()))
        timesteps.update(np.unique(site.read_index("timestep", start, stop)).tolist())
    return last + 1, sorted(timesteps)


def join_chunks(chunks: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Return (start, stop) of ``chunks``, with adjacent chunks joined until they have ``most`` rows."""
    joined: list[tuple[int, int]] = []
    for start, stop in chunks:
        if joined and joined[-1][1] == start and start - joined[-1][0] < most:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def is_image(site: str) -> bool:
    """Return whether positions are places of an image: at denoiser hook points except FLUX's text streams."""
    return hook_points.is_denoiser_point(site) and not site.endswith(".text")


def make_map(site: str, store: Store, positions: int, most: int) -> PositionMap:
    """Return the map of ``positions`` with at most ``most`` cells; a cell is a square or a stretch of positions.

    Positions form a map if they are places of an image and can have the aspect ratio of its pixels.
    """
    pixels = store.manifest.get("extract", {})
    grid = None
    if is_image(site) and pixels.get("height") and positions > 1:
        height = max(1, round(math.sqrt(positions * pixels["height"] / pixels["width"])))
        width = positions // height
        if height * width == positions and height * pixels["width"] == width * pixels["height"]:
            grid = height, width
    height, width = grid or (1, positions)
    side = next(n for n in range(1, positions + 1) if -(-height // n) * -(-width // n) <= most)
    row, column = np.divmod(np.arange(positions, dtype=np.int32), width)
    shape = -(-height // side), -(-width // side)
    return PositionMap(grid, shape, row // side * shape[1] + column // side)


def make_strata(column: str | None, table: pyarrow.Table, timesteps: list[int]) -> Strata:
    """Return strata by a column of the samples. With None, return strata by timestep if there are several.

    Raise InputError if the column does not exist, has no values or has more than MOST_STRATA values.
    """
    if not column:
        if len(timesteps) < 2:
            return Strata()
        return Strata("timestep", tuple(map(str, timesteps)), timesteps=np.asarray(timesteps, np.int32))
    kinds = {field.name: field.type for field in table.schema if not pyarrow.types.is_nested(field.type)}
    if column not in kinds:
        raise InputError(
            f"config.interpret.stratum is {column!r}; it must be a column of the samples: {', '.join(kinds)}"
        )
    label = as_label(column, table[column])
    if not 0 < len(label.classes) <= MOST_STRATA:
        raise InputError(
            f"config.interpret.stratum is {column!r}, a column with {len(label.classes):,} values; "
            f"it must have 1 to {MOST_STRATA} values"
        )
    return Strata(column, label.classes, of_sample=label.of_sample)


def token_column(site: str, table_names: list[str]) -> str | None:
    """Return the sample column with the tokens at each position of a text, or None if it is missing.

    FLUX's text streams have the tokens of T5.
    """
    encoder = "t5" if hook_points.is_denoiser_point(site) else site.partition(".")[0]
    name = f"{encoder}.tokens"
    return name if not is_image(site) and name in table_names else None
