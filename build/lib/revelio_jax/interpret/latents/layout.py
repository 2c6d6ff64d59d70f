"""How the rows of a site are laid out: text or picture, positions, the map that they make, and strata."""

import dataclasses
import math

import numpy as np
import pyarrow
import pyarrow.types

from revelio_jax.errors import InputError
from revelio_jax.interpret.latents.purity import as_label
from revelio_jax.pipelines import hook_points
from revelio_jax.store import SiteReader, Store

MOST_STRATA = 100  # values of config.interpret.stratum
SURVEYED = 1 << 20  # rows of an index array in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Strata:
    """Rows are told apart by their timestep, by a column of the samples, or not at all.

    ``names`` are what the strata are called. ``timesteps`` has those of ``names``, or ``of_sample``, int32
    [samples], the stratum of each sample, -1 where it has none; both are None where nothing is told apart.
    """

    column: str = ""
    names: tuple[str, ...] = ()
    timesteps: np.ndarray | None = None
    of_sample: np.ndarray | None = None

    @property
    def kept(self) -> int:
        """Strata that are counted: one where there are none, and one for samples that have none."""
        return len(self.names) + (self.of_sample is not None) or 1


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """A sample's positions as a map: ``grid`` is its height and width, None where it is none.

    ``shape`` is that of the map after maxima, [1, cells] of positions that are no map; ``of_position``,
    int32 [positions], the cell of each.
    """

    grid: tuple[int, int] | None
    shape: tuple[int, int]
    of_position: np.ndarray


def survey(site: SiteReader) -> tuple[int, list[int]]:
    """The number of positions, that is the largest + 1, and all timesteps, rising; -1 is none.

    Reads two index arrays, which hold 8 bytes a row: 10 million rows or more a second.
    """
    last, timesteps = 0, set()
    for start, stop in runs(site.chunks, SURVEYED):
        last = max(last, int(site.read_index("position", start, stop).max()))
        timesteps.update(np.unique(site.read_index("timestep", start, stop)).tolist())
    return last + 1, sorted(timesteps)


def runs(chunks: tuple[tuple[int, int], ...] | list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """(start, stop) of chunks that stand one after another in an array, joined up to ``most`` rows or so."""
    found: list[tuple[int, int]] = []
    for start, stop in chunks:
        if found and found[-1][1] == start and start - found[-1][0] < most:
            start = found.pop()[0]
        found.append((start, stop))
    return found


def is_image(site: str) -> bool:
    """Whether positions are places of a picture: sites of a denoiser, but for the text in FLUX's blocks."""
    return hook_points.is_denoiser_site(site) and not site.endswith(".text")


def make_cells(site: str, store: Store, positions: int, most: int) -> Cells:
    """The map of ``positions``, brought to at most ``most`` cells by maxima of squares, or of stretches.

    Positions are a map where they are places of a picture whose sides have the ratio of the pixels'.
    """
    facts = store.manifest.get("extract", {})
    grid = None
    if is_image(site) and facts.get("height") and positions > 1:
        height = max(1, round(math.sqrt(positions * facts["height"] / facts["width"])))
        width = positions // height
        if height * width == positions and height * facts["width"] == width * facts["height"]:
            grid = height, width
    height, width = grid or (1, positions)
    side = next(n for n in range(1, positions + 1) if -(-height // n) * -(-width // n) <= most)
    row, column = np.divmod(np.arange(positions, dtype=np.int32), width)
    shape = -(-height // side), -(-width // side)
    return Cells(grid, shape, row // side * shape[1] + column // side)


def make_strata(column: str, table: pyarrow.Table, timesteps: list[int]) -> Strata:
    """Strata by a column of the samples; where it is empty by timestep, if there are several.

    Raises InputError.
    """
    if not column:
        if len(timesteps) < 2:
            return Strata()
        return Strata("timestep", tuple(map(str, timesteps)), timesteps=np.asarray(timesteps, np.int32))
    kinds = {field.name: field.type for field in table.schema if not pyarrow.types.is_nested(field.type)}
    if column not in kinds:
        raise InputError(f"config.interpret.stratum is {column!r}; the samples have the columns {', '.join(kinds)}")
    label = as_label(column, table[column])
    if not 0 < len(label.classes) <= MOST_STRATA:
        raise InputError(
            f"config.interpret.stratum is {column!r}, which has {len(label.classes):,} values; "
            f"allowed: 1 to {MOST_STRATA}"
        )
    return Strata(column, label.classes, of_sample=label.of_sample)


def token_column(site: str, table_names: list[str]) -> str | None:
    """The column with the tokens of a text's positions, None where there is none.

    The text in FLUX's blocks is T5's.
    """
    encoder = "t5" if hook_points.is_denoiser_site(site) else site.partition(".")[0]
    name = f"{encoder}.tokens"
    return name if not is_image(site) and name in table_names else None
