"""Coverage and entropy of a batch equal those computed from its rows."""

import itertools
import math

import numpy as np
import pytest

from revelio_jax.store import SiteReader
from revelio_jax.training import coverage, loader
from revelio_jax.training.mixture import open_mixture


@pytest.fixture(scope="module")
def mixture(tmp_path_factory, write_store):
    """Rows that contain their own number, 16 per sample: 64 samples from row 0, 32 from row 2048."""
    folder = tmp_path_factory.mktemp("coverage")
    for start, count in ((0, 1024), (2048, 512)):
        rows = np.repeat(np.arange(start, start + count, dtype=np.float32)[:, None], 2, 1)
        write_store(folder / str(start), rows, shard_samples=12)
    return open_mixture([f"3:{folder}/0", f"1:{folder}/2048"])


@pytest.mark.parametrize("buffer_chunks", [1, 8, 64])
@pytest.mark.parametrize("lanes", [1, 2])
def test_coverage_and_entropy_equal_those_of_the_rows(mixture, buffer_chunks, lanes):
    order = loader.make_order(mixture, 0, 48, buffer_chunks, 0.1, lanes)
    stream, read = loader.batches(mixture, order, 0), coverage.reader(mixture)
    for step, batch in enumerate(itertools.islice(stream, 40)):
        _, counts = np.unique(batch[:, 0].astype(int) // 16, return_counts=True)
        measured = coverage.measure(mixture, order, step, read)
        expected = 64 * (1 - (63 / 64) ** 36) + 32 * (1 - (31 / 32) ** 12)
        assert measured["coverage"] == pytest.approx(len(counts) / expected)
        entropy = -sum(n / 48 * math.log(n / 48) for n in counts)
        assert measured["entropy"] == pytest.approx(entropy / math.log(48))
    stream.close()


def test_a_larger_buffer_shuffles_better_up_to_chance(mixture):
    def mean(buffer_chunks):
        order = loader.make_order(mixture, 0, 48, buffer_chunks, 0.1)
        measured = [coverage.measure(mixture, order, step) for step in range(100)]
        return [np.mean([m[name] for m in measured]) for name in ("coverage", "entropy")]

    small, middle, large = mean(2), mean(16), mean(64)
    assert small < middle < large
    assert small[0] < 0.3
    assert large[0] == pytest.approx(1, abs=0.1)


def test_a_store_of_one_sample_has_full_coverage(tmp_path, write_store):
    mixture = open_mixture([write_store(tmp_path / "one", np.eye(16, 2, dtype=np.float32))])
    order = loader.make_order(mixture, 0, 8, 4, 0.0)
    assert coverage.measure(mixture, order, 0) == {"coverage": 1.0, "entropy": 1.0}


def test_samples_of_a_chunk_are_read_once(mixture, monkeypatch):
    read, order = coverage.reader(mixture), loader.make_order(mixture, 0, 48, 8, 0.1)
    starts, start_index = [], SiteReader.start_index
    monkeypatch.setattr(SiteReader, "start_index", lambda self, *rows: starts.append(rows) or start_index(self, *rows))
    first = [coverage.measure(mixture, order, step, read) for step in range(3)]
    count = len(starts)
    assert [coverage.measure(mixture, order, step, read) for step in range(3)] == first
    assert len(starts) == count > 0
