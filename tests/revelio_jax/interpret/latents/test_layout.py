"""Maps of positions, strata, and the column with the tokens of a hook point."""

import types

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import layout


def store_of(height=0, width=0):
    """A store with only the manifest entries that layout reads."""
    return types.SimpleNamespace(manifest={"extract": {"height": height, "width": width}})


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 64))
def test_cells_are_the_smallest_squares_that_fit(height, width, most):
    cells = layout.make_map("unet.mid_block", store_of(8 * height, 8 * width), height * width, most)
    if height * width == 1:
        assert (cells.grid, cells.shape) == (None, (1, 1))
        return
    assert cells.grid == (height, width)
    side = 1  # the smallest squares within the limit
    while -(-height // side) * -(-width // side) > most:
        side += 1
    assert cells.shape == (-(-height // side), -(-width // side))
    cell = cells.cell_of_position.reshape(height, width)
    for y, x in np.ndindex(height, width):
        assert divmod(cell[y, x], cells.shape[1]) == (y // side, x // side)


@pytest.mark.parametrize(
    ("site", "size", "positions", "grid"),
    [
        ("clip.layer.9", (512, 512), 16, None),  # positions of a text form no map
        ("flux.double.3.text", (512, 512), 16, None),
        ("flux.double.3.image", (512, 256), 32, (8, 4)),
        ("unet.mid_block", (512, 512), 15, None),  # no square
        ("unet.mid_block", (0, 0), 16, None),  # unknown image size
    ],
)
def test_positions_with_the_aspect_ratio_of_the_pixels_form_a_map(site, size, positions, grid):
    cells = layout.make_map(site, store_of(*size), positions, 256)
    assert cells.grid == grid
    assert cells.shape == grid or (cells.shape == (1, positions) and grid is None)


@pytest.mark.parametrize(
    ("site", "columns", "column"),
    [
        ("clip.layer.9", ["prompt", "clip.tokens"], "clip.tokens"),
        ("clip_l.layer.10+clip_g.layer.28", ["clip_g.tokens", "clip_l.tokens"], "clip_l.tokens"),
        ("clip.layer.9", ["prompt"], None),
        ("unet.mid_block", ["unet.tokens"], None),
        ("flux.double.3.text", ["prompt", "t5.tokens"], "t5.tokens"),
        ("flux.double.3.image", ["prompt", "t5.tokens"], None),
    ],
)
def test_token_column_matches_the_hook_point(site, columns, column):
    assert layout.token_column(site, columns) == column


def test_strata_are_timesteps_or_a_column():
    table = pyarrow.table({"id": [0, 1, 2], "language": ["fr", None, "de"], "many": [[1], [2], [3]]})
    assert layout.make_strata(None, table, [-1]).counted == 1
    assert layout.make_strata(None, table, [7]).names == ()
    by_time = layout.make_strata(None, table, [1, 501])
    assert (by_time.column, by_time.names, by_time.counted) == ("timestep", ("1", "501"), 2)
    by_language = layout.make_strata("language", table, [1, 501])
    assert (by_language.names, by_language.of_sample.tolist()) == (("de", "fr"), [1, -1, 0])
    assert by_language.counted == 3  # and one for samples without a value
    with pytest.raises(InputError, match="'many'; it must be a column of the samples: id, language"):
        layout.make_strata("many", table, [])
    with pytest.raises(InputError, match="a column with 101 values; it must have 1 to 100"):
        layout.make_strata("id", pyarrow.table({"id": range(101)}), [])
    with pytest.raises(InputError, match="a column with 0 values"):
        layout.make_strata("id", pyarrow.table({"id": pyarrow.nulls(3, pyarrow.int64())}), [])


@given(st.lists(st.integers(1, 9), max_size=8), st.lists(st.booleans(), min_size=8), st.integers(1, 30))
def test_adjacent_chunks_are_joined(lengths, gaps, most):
    chunks, at = [], 0
    for length, gap in zip(lengths, gaps, strict=False):
        at += gap
        chunks.append((at, at := at + length))
    found = layout.join_chunks(chunks, most)
    assert [i for run in found for i in range(*run)] == [i for chunk in chunks for i in range(*chunk)]
    assert all(stop - start < most + max(lengths) for start, stop in found)
