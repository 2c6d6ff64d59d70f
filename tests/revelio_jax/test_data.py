"""The order of rows: complete, shuffled, and a pure function of (seed, step)."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revelio_jax import data
from revelio_jax.errors import InputError
from revelio_jax.store import open_store


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_store):
    """977 of 992 rows [2], each holding its own number; 15 were not finite; shards of 96 and 80 rows."""
    rows = np.repeat(np.arange(992, dtype=np.float32)[:, None], 2, 1)
    rows[100:115, 1] = np.nan
    return open_store(write_store(tmp_path_factory.mktemp("data") / "rows", rows, shard_samples=6)).site()


def make(site, seed=0, batch_size=50, buffer_chunks=5, held_out=0.1):
    return data.make_order(site, seed, batch_size, buffer_chunks, held_out)


def take(site, order, step, count):
    stream = data.batches(site, order, step)
    taken = [batch[:, 0].astype(int) for batch in itertools.islice(stream, count)]
    stream.close()
    return np.array(taken)


def test_every_epoch_holds_every_training_row_once(site):
    order = make(site)
    held_out = np.concatenate(list(data.held_out_rows(site, order, 7)))[:, 0].astype(int)
    rows = take(site, order, 0, 2 * order.rows // 50 + 1).ravel()
    first, second = rows[: order.rows], rows[order.rows : 2 * order.rows]
    assert len(set(first)) == order.rows
    assert sorted(first) == sorted(second)
    assert (first != second).any()
    assert not set(first) & set(held_out)
    assert set(first) | set(held_out) == set(range(992)) - set(range(100, 115))


@pytest.mark.parametrize("step", [1, 7, 17, 18, 19, 53])
def test_a_step_does_not_depend_on_where_the_stream_began(site, step):
    order = make(site)
    np.testing.assert_array_equal(take(site, order, 0, 60)[step:], take(site, make(site), step, 60 - step))


@pytest.mark.parametrize("changed", [{"seed": 1}, {"buffer_chunks": 6}, {"batch_size": 25}])
def test_rows_depend_on_seed_and_configuration(site, changed):
    before = take(site, make(site), 0, 4).ravel()[:100]
    after = take(site, make(site, **changed), 0, 4).ravel()[:100]
    same_order = (before == after).all()
    assert same_order == ("batch_size" in changed)  # batches are only cuts of one stream


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    batch_size=st.integers(1, 500),
    buffer_chunks=st.integers(1, 40),
    held_out=st.floats(0, 0.5),
    step=st.integers(0, 10_000),
)
def test_rows_of_a_step_are_those_of_its_batch(site, seed, batch_size, buffer_chunks, held_out, step):
    order = make(site, seed, min(batch_size, site.rows // 3), buffer_chunks, held_out)
    rows = data.rows_of(order, step)
    assert rows.dtype == np.int64
    there = site.arrays["activations"][rows].read().result()[:, 0]
    np.testing.assert_array_equal(there, take(site, order, step, 1)[0])


def test_rows_are_shuffled_over_the_whole_buffer(site):
    chunks = take(site, make(site, buffer_chunks=100), 0, 10) // 32
    assert min(len(set(batch)) for batch in chunks) > 15  # of 28 chunks


def test_a_batch_may_span_groups(site):
    order = make(site, batch_size=400, buffer_chunks=1)
    rows = take(site, order, 0, 2).ravel()
    assert len(set(rows)) == 800


def test_held_out_batches_and_first_rows(site):
    order = make(site, held_out=0.2)
    lengths = [len(batch) for batch in data.held_out_rows(site, order, 50)]
    assert set(lengths[:-1]) == {50}
    assert sum(lengths) == sum(stop - start for start, stop in order.held_out)
    np.testing.assert_array_equal(
        data.first_rows(site, order, 120)[:, 0], take(site, order, 0, 3).ravel()[:120]
    )
    assert len(data.first_rows(site, order, 10**6)) == order.rows


def test_share_of_held_out_chunks(site):
    assert len(make(site, held_out=0.0).held_out) == 0
    assert len(make(site, held_out=1e-6).held_out) == 1
    assert len(make(site, held_out=0.5).held_out) == round(0.5 * len(site.chunks))


def test_too_few_rows(site, tmp_path, write_store):
    with pytest.raises(InputError, match=r"batch_size is 5000, but site clip.layer.1 has \d+ rows"):
        make(site, batch_size=5000)
    one_chunk = open_store(write_store(tmp_path / "one", np.eye(32, 4, dtype=np.float32))).site()
    with pytest.raises(InputError, match=r"held_out is 0\.1"):
        make(one_chunk, batch_size=4)
    assert make(one_chunk, batch_size=4, held_out=0.0).rows == 32


def test_a_read_that_fails_is_raised(site):
    order = make(site)

    class Broken:
        d = site.d

        def read(self, start, stop):
            raise OSError("no such shard")

    with pytest.raises(OSError, match="no such shard"):
        next(data.batches(Broken(), order, 0))
