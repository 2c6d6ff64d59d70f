"""Rows of a store read in order: with gaps, skipped samples, and samples split over batches."""

import shutil

import numpy as np
import pytest

from revelio_jax.config import Config, DataConfig, ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import stream
from revelio_jax.store import open_store

SITE = "unet.mid_block"


@pytest.fixture(scope="module")
def store_with_gaps(tmp_path_factory, write_samples):
    """20 samples of 1 to 5 rows in float16, 4 samples per shard, 4 rows per chunk; 2 and 8 to 11 have no rows."""
    random = np.random.default_rng(0)
    sample = np.concatenate([np.full(random.integers(1, 6), i) for i in range(20) if i != 2 and i not in range(8, 12)])
    rows = random.normal(size=(len(sample), 3)).astype(np.float16)
    position = np.arange(len(sample)) % 7
    samples = [{"prompt": str(i)} for i in range(20)]
    location = write_samples(
        tmp_path_factory.mktemp("gaps") / "store",
        SITE,
        rows,
        sample,
        position,
        -1 + 0 * sample,
        samples,
        shard_samples=4,
        chunk_rows=4,
        dtype="float16",
        skipped=[2, 8, 9, 10, 11],
    )
    return location, rows, sample, position


@pytest.mark.parametrize("batch_size", [1, 6, 1000])
def test_all_rows_are_read_in_order(store_with_gaps, batch_size):
    location, rows, sample, position = store_with_gaps
    site = open_store(location).site(SITE)
    # The memory of a batch is reused.
    read = [(batch.x_ND.copy(), *batch[1:]) for batch in stream.batches(site, batch_size)]
    x, *index = (np.concatenate(column) for column in zip(*read, strict=True))
    assert x.dtype == np.float16
    np.testing.assert_array_equal(x, rows)
    for got, wanted in zip(index, (sample, position, -1 + 0 * sample), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert max(len(part[0]) for part in read) <= max(batch_size, 4)
    assert max(len(part[0]) for part in read) == stream.largest_batch(site, batch_size)


@pytest.mark.parametrize("batch_size", [1, 6, 1000])
def test_whole_samples_never_splits_a_sample(store_with_gaps, batch_size):
    location, rows, sample, _ = store_with_gaps
    site = open_store(location).site(SITE)
    values = np.maximum(rows.astype(np.float32), 0)
    every = np.broadcast_to(np.arange(3, dtype=np.int32), values.shape)

    def parts():
        start = 0
        for batch in stream.batches(site, batch_size):
            stop = start + len(batch.x_ND)
            yield stream.compact(batch, values[start:stop], every[start:stop])
            start = stop

    whole = list(stream.whole_samples(parts()))
    of_parts = [set(part.sample_N.tolist()) for part in whole]
    assert sum(map(len, of_parts)) == len(set(sample.tolist()))
    dense = []
    for part in whole:
        assert part.fires_N.sum() == len(part.latent_E) == len(part.value_E)
        code = np.zeros((len(part.fires_N), 3), np.float32)
        code[np.repeat(np.arange(len(code)), part.fires_N), part.latent_E] = part.value_E
        dense.append(code)
    np.testing.assert_array_equal(np.concatenate(dense), values)


def test_unsorted_samples_are_refused(tmp_path, write_samples):
    sample = np.array([0, 1, 0])
    location = write_samples(
        tmp_path / "store", SITE, np.ones((3, 2), np.float32), sample, 0 * sample, 0 * sample, [{}, {}]
    )
    with pytest.raises(InputError, match="the rows are not sorted by sample"):
        list(stream.batches(open_store(location).site(SITE), 10))


def test_exactly_one_store_is_required(store_with_gaps, tmp_path):
    shutil.copytree(store_with_gaps[0], tmp_path / "other")
    with pytest.raises(InputError, match=r"config\.extract\.store is not set"):
        stream.open_site(Config())
    both = Config(
        extract=ExtractConfig(store=""), data=DataConfig(stores=(f"1:{store_with_gaps[0]}", f"2:{tmp_path / 'other'}"))
    )
    with pytest.raises(InputError, match="has 2 stores; it must have one"):
        stream.open_site(both)
