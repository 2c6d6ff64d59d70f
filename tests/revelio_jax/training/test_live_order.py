"""The order of a live run: every epoch has each row once, and a step needs the shards of two blocks at most."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from revelio_jax.config import Config, DataConfig, ExtractConfig, TrainConfig
from revelio_jax.errors import InputError
from revelio_jax.training import live_order
from revelio_jax.training.loader import Chunk

SITE, RESERVED, CHUNK = "unet.mid_block", 40, 8  # array rows per shard, and rows per chunk


def a_config(seed=0, live_shards=8, held_out=0.1, **train) -> Config:
    return Config(
        extract=ExtractConfig(sites=(SITE,)),
        data=DataConfig(live=True, live_shards=live_shards, held_out=held_out, buffer_chunks=6),
        train=TrainConfig(seed=seed, batch_size=16, **train),
    )


def a_stream(config, rows) -> tuple[live_order.Split, live_order.LiveStream]:
    """The stream over shards with these numbers of rows."""
    shards = live_order.split({"sites": {SITE: {"expected_rows": rows}}}, SITE, config)
    chunks = {
        shard: tuple(
            Chunk(0, shard * RESERVED + begin, shard * RESERVED + min(begin + CHUNK, rows[shard]))
            for begin in range(0, rows[shard], CHUNK)
        )
        for shard in shards.training
    }
    every = tuple(itertools.chain.from_iterable(chunks.values()))
    stream = live_order.LiveStream(config.train.seed, (0, 0), every, config.data.buffer_chunks, chunks, shards.block)
    return shards, stream


def take(stream, row, count) -> np.ndarray:
    """The array rows of ``count`` rows of the stream from ``row`` on."""
    groups, rows = stream.groups_from(row), np.empty(0, int)
    while len(rows) < count:
        chunks, places = next(groups)
        rows = np.append(rows, np.concatenate([np.arange(chunk.start, chunk.stop) for chunk in chunks])[places])
    return rows[:count]


@hypothesis.given(
    rows=st.lists(st.integers(0, RESERVED), min_size=2, max_size=30).filter(lambda rows: sum(map(bool, rows)) > 1),
    seed=st.integers(0, 5),
    live_shards=st.integers(3, 20),
    held_out=st.floats(0.01, 0.5),
    row=st.integers(0, 3000),
)
@hypothesis.settings(max_examples=40)
def test_rows_of_two_blocks_are_on_the_disk_and_no_more_than_live_shards(rows, seed, live_shards, held_out, row):
    shards, stream = a_stream(a_config(seed, live_shards, held_out), rows)
    needed = stream.needed(row, 10**6)
    assert len({*shards.held_out, *needed}) == len(shards.held_out) + len(needed) <= live_shards
    # Rows as many as the smallest block from any row on are in the needed shards.
    assert set(take(stream, row, stream.fewest_rows + 1) // RESERVED) <= set(needed)
    epoch = take(stream, 0, stream.rows)
    expected = [shard * RESERVED + i for shard in shards.training for i in range(rows[shard])]
    assert sorted(epoch) == expected
    assert not set(epoch // RESERVED) & set(shards.held_out)


def test_the_order_is_a_function_of_the_seed():
    orders = [take(a_stream(a_config(seed), [40] * 12)[1], 0, 900) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()
    first, second = orders[0][:440], orders[0][440:880]
    assert (first != second).any()  # epochs differ
    late = take(a_stream(a_config(0), [40] * 12)[1], 700, 200)
    np.testing.assert_array_equal(late, orders[0][700:])


def test_shards_that_all_fit_are_one_block():
    shards, stream = a_stream(a_config(live_shards=12), [40] * 12)
    assert shards.block == len(shards.training) == 11
    assert set(stream.needed(500, 10**6)) == set(stream.needed(0, 10**6)) == set(shards.training)


def test_nothing_is_needed_after_the_last_row():
    _, stream = a_stream(a_config(), [40] * 12)
    blocks, ends = stream.blocks(0)
    assert stream.needed(ends[1], ends[1]) == []
    assert stream.needed(ends[0], ends[1]) == blocks[1]
    assert stream.needed(ends[0], ends[1] + 1) == [*blocks[1], *blocks[2]]


def test_one_shard_is_too_few():
    with pytest.raises(InputError, match=r"at least 2 shards .* has 1; lower config.extract.shard_samples"):
        a_stream(a_config(), [40, 0])
