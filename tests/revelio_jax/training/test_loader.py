"""The order of rows is complete, shuffled, mixed by weight, and a pure function of (seed, step)."""

import fractions
import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revelio_jax.errors import InputError
from revelio_jax.sae import sharding
from revelio_jax.training import loader
from revelio_jax.training.mixture import Mixture, MixtureSource, open_mixture
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def location(tmp_path_factory, write_store):
    """A store with 977 of 992 rows [2] that contain their own number; 15 were not finite; shards of 96 rows."""
    rows = np.repeat(np.arange(992, dtype=np.float32)[:, None], 2, 1)
    rows[100:115, 1] = np.nan
    return write_store(tmp_path_factory.mktemp("data") / "rows", rows, shard_samples=6)


@pytest.fixture(scope="module")
def one(location):
    return open_mixture([location])


@pytest.fixture(scope="module")
def mixed(location, tmp_path_factory, write_store):
    """70 % from the store of ``one``, 30 % from two stores with rows 1000 to 1159 and 2000 to 2319."""
    folder = tmp_path_factory.mktemp("mixed")
    for start, count in ((1000, 160), (2000, 320)):
        rows = np.repeat(np.arange(start, start + count, dtype=np.float32)[:, None], 2, 1)
        write_store(folder / f"part_{start}", rows, shard_samples=4)
    return open_mixture([f"7:{location}", f"3:{folder}/part_*"])


def make(mixture, seed=0, batch_size=50, buffer_chunks=5, held_out=0.1, lanes=1):
    return loader.make_order(mixture, seed, batch_size, buffer_chunks, held_out, lanes)


def take(mixture, order, step, count, lanes=None):
    stream = loader.batches(mixture, order, step, lanes)
    taken = [batch[:, 0].astype(int) for batch in itertools.islice(stream, count)]
    stream.close()
    return np.array(taken)


def rows_of(mixture, chunks):
    return np.concatenate([mixture.sites[site].read(start, stop)[:, 0] for site, start, stop in chunks])


def test_every_epoch_has_every_training_row_once(one):
    order = make(one)
    held_out = np.concatenate(list(loader.held_out_rows(one, order, 7)))[:, 0].astype(int)
    rows = take(one, order, 0, 2 * order.rows // 50 + 1).ravel()
    first, second = rows[: order.rows], rows[order.rows : 2 * order.rows]
    assert len(set(first)) == order.rows
    assert sorted(first) == sorted(second)
    assert (first != second).any()
    assert not set(first) & set(held_out)
    assert set(first) | set(held_out) == set(range(992)) - set(range(100, 115))


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    group_chunks=st.integers(1, 25),
    seed=st.integers(0, 9),
    begin=st.integers(0, 300),
)
def test_a_stream_repeats_whole_epochs_and_can_start_at_any_row(lengths, group_chunks, seed, begin):
    ends = list(itertools.accumulate(lengths))
    chunks = tuple(loader.Chunk(0, end - n, end) for n, end in zip(lengths, ends, strict=True))

    def rows(start):
        for group, places in loader.ChunkStream(seed, (0, 0), chunks, group_chunks).groups_from(start):
            assert len(group) <= group_chunks
            yield from np.concatenate([np.arange(start, stop) for _, start, stop in group])[places]

    total, wanted = ends[-1], 3 * ends[-1] + 300
    from_the_start = list(itertools.islice(rows(0), wanted + begin))
    for epoch in range(3):
        assert sorted(from_the_start[epoch * total : (epoch + 1) * total]) == list(range(total))
    assert list(itertools.islice(rows(begin), wanted)) == from_the_start[begin:]


@pytest.mark.parametrize("step", [1, 7, 17, 18, 19, 53])
def test_a_batch_does_not_depend_on_the_first_step(one, step):
    order = make(one)
    np.testing.assert_array_equal(take(one, order, 0, 60)[step:], take(one, make(one), step, 60 - step))


@pytest.mark.parametrize("step", [1, 8, 23, 40])
def test_a_batch_of_several_sources_and_lanes_does_not_depend_on_the_first_step(mixed, step):
    order, again = (make(mixed, batch_size=48, lanes=4, buffer_chunks=16) for _ in range(2))
    np.testing.assert_array_equal(take(mixed, order, 0, 50)[step:], take(mixed, again, step, 50 - step))


@pytest.mark.parametrize("changed", [{"seed": 1}, {"buffer_chunks": 6}, {"batch_size": 25}])
def test_rows_depend_on_seed_and_configuration(one, changed):
    before = take(one, make(one), 0, 4).ravel()[:100]
    after = take(one, make(one, **changed), 0, 4).ravel()[:100]
    same_order = (before == after).all()
    assert same_order == ("batch_size" in changed)  # batch size only cuts the same stream differently


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    batch_size=st.sampled_from([40, 100, 320]),
    buffer_chunks=st.integers(1, 40),
    held_out=st.floats(0, 0.3),
    lanes=st.sampled_from([1, 2, 4]),
    step=st.integers(0, 10_000),
)
def test_rows_of_a_step_are_the_rows_of_its_batch(mixed, seed, batch_size, buffer_chunks, held_out, lanes, step):
    order = make(mixed, seed, batch_size, buffer_chunks, held_out, lanes)
    rows = loader.rows_of(order, step)
    assert rows.dtype == np.int64
    there = [int(mixed.sites[site].read(row, row + 1)[0, 0]) for site, row in rows.T]
    assert there == take(mixed, order, step, 1)[0].tolist()


def test_a_batch_keeps_its_rows_as_long_as_it_is_held(one):
    order = make(one, batch_size=20, buffer_chunks=5)
    stream = loader.batches(one, order, 0)
    held = list(itertools.islice(stream, 100))
    stream.close()
    np.testing.assert_array_equal([batch[:, 0] for batch in held], take(one, make(one, batch_size=20), 0, 100))
    assert held[0].base is held[1].base is not held[20].base  # views of the memory of a group


def test_memory_of_groups_is_used_again(one):
    order = make(one, batch_size=20, buffer_chunks=5)
    stream = loader.batches(one, order, 0)
    memory = {next(stream).base.ctypes.data for _ in range(400)}  # of groups, or of batches that span two groups
    stream.close()
    assert len(memory) <= 3 + 2 + loader.BATCHES_AHEAD


def test_rows_are_shuffled_over_the_whole_buffer(one):
    chunks = take(one, make(one, buffer_chunks=100), 0, 10) // 32
    assert min(len(set(batch)) for batch in chunks) > 15  # of 28 chunks


def test_a_batch_can_span_groups(one):
    order = make(one, batch_size=400, buffer_chunks=1)
    rows = take(one, order, 0, 2).ravel()
    assert len(set(rows)) == 800


def test_sources_have_their_share_of_every_batch_and_separate_epochs(mixed):
    order = make(mixed)
    held_out = set(rows_of(mixed, order.held_out))
    assert [sum(low <= row < low + 1000 for row in held_out) > 0 for low in (0, 1000, 2000)] == [True] * 3
    rows = take(mixed, order, 0, 80)
    assert ((rows < 1000).sum(1) == 35).all()
    wanted = (set(range(1000, 1160)) | set(range(2000, 2320))) - held_out
    # Each source has its own epochs, and the two stores of the pattern are read as one.
    for source_rows in (rows[rows < 1000], rows[rows >= 1000]):
        seen, times = np.unique(source_rows, return_counts=True)
        assert np.ptp(times) == 1
        assert times.min() == len(source_rows) // len(seen) >= 2
    assert set(seen) == wanted
    borders = np.flatnonzero(np.diff(rows[0] < 1000))
    assert len(borders) > 5  # sources are mixed within a batch


@settings(max_examples=50)
@given(
    weights=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    lane_rows=st.integers(1, 500),
    lanes=st.integers(1, 4),
    step=st.integers(0, 10**9),
)
def test_shares_hold_at_every_step(weights, lane_rows, lanes, step):
    shares = tuple(fractions.Fraction(weight, sum(weights)) for weight in weights)
    order = loader.Order(0, lane_rows * lanes, shares, ((),) * lanes, ())
    before, after = order.rows_before(step), order.rows_before(step + 1)
    assert sum(before) == step * lane_rows
    assert all(abs(n - share * step * lane_rows) < 1 for n, share in zip(before, shares, strict=True))
    if all(share * lane_rows >= 1 for share in shares):  # make_order requires it
        assert all(a <= b for a, b in zip(before, after, strict=True))
    whole = order.rows_before(step * sum(weights))
    assert whole == [step * lane_rows * weight for weight in weights]


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_lanes_split_the_chunks_evenly(mixed, lanes):
    order = make(mixed, batch_size=48, lanes=lanes)
    dealt = [chunk for lane in order.streams for stream in lane for chunk in stream.chunks]
    every = [loader.Chunk(i, *chunk) for i, site in enumerate(mixed.sites) for chunk in site.chunks]
    assert sorted([*dealt, *order.held_out]) == every
    counts = [[len(stream.chunks) for stream in lane] for lane in order.streams]
    assert np.ptp(counts, axis=0).max() <= 1


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_batch_does_not_depend_on_the_number_of_processes(mixed, processes):
    order = make(mixed, batch_size=48, lanes=4, buffer_chunks=16)
    process_DF = np.repeat(np.arange(processes), 8 // processes)[:, None]
    parts, chunks = [], []
    for process in range(processes):
        lanes = sharding.own_lanes(process_DF, 4, process)
        parts.append(take(mixed, order, 3, 60, lanes))
        chunks.append({c for lane in lanes for stream in order.streams[lane] for c in stream.chunks})
        assert set(parts[-1].ravel()) == set(rows_of(mixed, chunks[-1]))  # no chunks of other processes
    assert sum(map(len, chunks)) == len(set.union(*chunks))
    np.testing.assert_array_equal(np.concatenate(parts, 1), take(mixed, order, 3, 60))


def test_only_chunks_of_the_own_lanes_are_read(mixed):
    order, read = make(mixed, batch_size=48, lanes=4), set()

    def spy(number, site):
        class Spy:
            dtype = site.dtype

            def start_into(self, start, rows):
                read.add(loader.Chunk(number, start, start + len(rows)))
                return site.start_into(start, rows)

        return Spy()

    sites = tuple(spy(i, site) for i, site in enumerate(mixed.sites))
    watched = Mixture(mixed.name, mixed.d, (MixtureSource("", fractions.Fraction(1), (), sites),))
    stream = loader.batches(watched, order, 0, [1])
    for _ in range(60):
        next(stream)
    stream.close()
    assert read == {chunk for part in order.streams[1] for chunk in part.chunks}


def test_own_lanes_are_those_of_the_devices_of_a_process():
    across = np.array([[0, 0, 1, 1]])  # latents over two processes: rows come in on all devices
    assert (sharding.own_lanes(across, 2, 0), sharding.own_lanes(across, 2, 1)) == ((0,), (1,))
    strided = np.array([0, 0, 1, 1, 0, 0, 1, 1])[:, None]  # for example hosts of a TPU torus
    assert sharding.own_lanes(strided, 8, 1) == (2, 3, 6, 7)
    assert sharding.own_lanes(strided, 4, 0) == (0, 2)
    with pytest.raises(InputError, match=r"lanes is 2; it must be a multiple of 4"):
        sharding.own_lanes(strided, 2, 0)
    with pytest.raises(InputError, match=r"lanes is 1; it must be a multiple of 2"):
        sharding.own_lanes(np.array([[0], [1]]), 1, 0)
    with pytest.raises(InputError, match="is 2 x 1, which leaves process 1 without a device"):
        sharding.own_lanes(np.array([[0], [0]]), 1, 1)


PROCESS = """
import sys
import threading
import time
import jax, numpy as np
address, process, location = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, num_processes=2, process_id=process)
from revelio_jax.sae import sharding
from revelio_jax.training import loader
from revelio_jax.training.mixture import open_mixture
mixture = open_mixture([location])
order = loader.make_order(mixture, 0, 48, 8, 0.1, 4)
mesh = sharding.make_mesh(*map(int, sys.argv[4:]), 48, 48)
lanes = sharding.own_lanes(sharding.processes(mesh), 4, jax.process_index())
ours, whole = loader.batches(mixture, order, 5, lanes), loader.batches(mixture, order, 5)
for _ in range(3):
    x_BD, wanted = sharding.put_batch(mesh, next(ours)), next(whole)
    assert x_BD.shape == (48, 2), x_BD.shape
    for shard in x_BD.addressable_shards:
        np.testing.assert_array_equal(shard.data, wanted[shard.index])
ours.close(), whole.close()
print("lanes", *lanes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "lanes"), [((16, 1), ["0 1", "2 3"]), ((1, 16), ["0 1", "2 3"])])
def test_two_processes_assemble_one_batch(location, mesh, lanes, unused_port):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, f"localhost:{unused_port}", str(i), location, *map(str, mesh)],
            cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    for process, wanted in zip(running, lanes, strict=True):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.strip() == f"lanes {wanted}"


def test_held_out_rows_and_first_rows_are_complete(one):
    order = make(one, held_out=0.2)
    lengths = [len(batch) for batch in loader.held_out_rows(one, order, 50)]
    assert set(lengths[:-1]) == {50}
    assert sum(lengths) == loader.length(order.held_out)
    np.testing.assert_array_equal(loader.first_rows(one, order, 120)[:, 0], take(one, order, 0, 3).ravel()[:120])
    assert len(loader.first_rows(one, order, 10**6)) == order.rows


def test_held_out_is_a_share_of_the_chunks(one):
    assert len(make(one, held_out=0.0).held_out) == 0
    assert len(make(one, held_out=1e-6).held_out) == 1
    assert len(make(one, held_out=0.5).held_out) == round(0.5 * len(one.sites[0].chunks))


def test_too_few_rows_are_refused(one, mixed, tmp_path, write_store):
    with pytest.raises(InputError, match=r"batch_size is 5000, but site clip.layer.1 has \d+ rows"):
        make(one, batch_size=5000)
    with pytest.raises(InputError, match=r"has \d+ rows to train on of .*rows in one of 2 lanes"):
        make(mixed, batch_size=1500, lanes=2)
    with pytest.raises(InputError, match=r"batch_size is 48, which gives 0\.9 rows of .*part_"):
        make(mixed, batch_size=48, lanes=16)
    with pytest.raises(InputError, match=r"lanes is 3; it must divide config.train.batch_size 50"):
        make(one, lanes=3)
    with pytest.raises(InputError, match=r"has 0 rows to train on of .* in one of 50 lanes"):
        make(one, lanes=50)
    one_chunk = open_mixture([write_store(tmp_path / "one", np.eye(32, 4, dtype=np.float32))])
    with pytest.raises(InputError, match=r"held_out is 0\.1"):
        make(one_chunk, batch_size=4)
    assert make(one_chunk, batch_size=4, held_out=0.0).rows == 32


def test_a_failed_read_is_raised(one):
    class Broken:
        dtype = "float32"

        def start_into(self, start, rows):
            raise OSError("no such shard")

    broken = Mixture(one.name, one.d, (MixtureSource("", fractions.Fraction(1), (), (Broken(),)),))
    with pytest.raises(OSError, match="no such shard"):
        next(loader.batches(broken, make(one), 0))


MEMORY = r"""
import itertools, re, sys
from revelio_jax.training import loader
from revelio_jax.training.mixture import open_mixture
mixture = open_mixture([sys.argv[1]])
order = loader.make_order(mixture, 0, 256, 16, 0.05, int(sys.argv[2]))
def peak():  # of this process alone; getrusage includes its parent
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
before = peak()
stream = loader.batches(mixture, order, 0)
for batch in itertools.islice(stream, 2 * order.rows // 256):
    batch.sum()
stream.close()
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_depend_on_the_size_of_the_store(tmp_path, write_store):
    """Stores have 4 and 100 MiB; a group of 16 chunks of 32 rows of 4 KiB has 2 MiB."""
    grown = []
    for rows, lanes in ((1024, 1), (25600, 1), (25600, 8)):
        folder = tmp_path / f"rows_{rows}"
        store = str(folder) if folder.exists() else write_store(folder, np.ones((rows, 1024), np.float32))
        command = [sys.executable, "-c", MEMORY, store, str(lanes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown.append(float(done.stdout))
    assert max(grown) < 32 * 2**20


def test_closing_cancels_pending_reads(one):
    (site,), reads = one.sites, []

    class Slow:
        dtype = site.dtype

        def start_into(self, start, rows):
            reads.append(start)
            time.sleep(0.1)
            return site.start_into(start, rows)

    slow = Mixture(one.name, one.d, (MixtureSource("", fractions.Fraction(1), (), (Slow(),)),))
    # Batches assembled ahead reach into the second group, which has more chunks than threads.
    stream = loader.batches(slow, make(one, batch_size=200, buffer_chunks=14), 0)
    next(stream)
    time.sleep(0.05)
    closing = threading.Thread(target=stream.close, daemon=True)
    closing.start()
    closing.join(timeout=20)
    assert not closing.is_alive()
    assert len(reads) < 28
