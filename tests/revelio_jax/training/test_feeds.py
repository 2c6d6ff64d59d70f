"""Feeds: rows that stay on the devices are the bits of the rows from the host, on every mesh."""

import contextlib

import numpy as np
import pytest

from revelio_jax.errors import InputError
from revelio_jax.sae import sharding
from revelio_jax.training import feeds, loader, resident
from revelio_jax.training.loader import RowStream
from revelio_jax.training.mixture import open_mixture

BATCH = 48


@pytest.fixture(scope="module")
def locations(tmp_path_factory, write_store):
    """Two stores per dtype. Some rows are -0.0, which adding zeros would change; the store drops others."""
    folder, random = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    stores = {}
    for dtype in ("float32", "float16", "bfloat16"):
        stores[dtype] = []
        for count in (992, 480):
            rows = random.standard_normal((count, 6), np.float32)
            rows[::7], rows[100:115] = -0.0, np.nan
            stores[dtype].append(write_store(folder / f"{dtype}_{count}", rows, 6, dtype=dtype, number=count))
    return stores


def stream_of(locations, lanes):
    mixture = open_mixture([f"{weight}:{path}" for weight, path in zip((7, 3), locations, strict=False)])
    return RowStream(mixture, loader.make_order(mixture, 0, BATCH, 5, 0.1, lanes))


def rows_of(choice, stream, mesh, start, lengths):
    """Return the bits of the rows [S, B, D] that a feed gives for dispatches of these lengths."""
    count = max(lengths)
    spans = [range(start + 1, start + 1 + length) for length in lengths]  # only their lengths count
    (feed,) = feeds.open_feeds(choice, [stream], range(stream.order.lanes), count, mesh)
    with contextlib.closing(feed(start, spans)) as rows:
        parts = [next(rows) for _ in lengths]
    for part in parts:
        assert part.dtype == stream.mixture.dtype
        spec = sharding.HOST_BATCH if count == 1 else sharding.STACKED_BATCH
        assert part.sharding.is_equivalent_to(sharding.named_shardings(mesh, spec), part.ndim)
    x_SBD = np.concatenate([np.asarray(part).reshape(-1, BATCH, 6) for part in parts])
    return x_SBD.view(f"u{x_SBD.dtype.itemsize}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "lanes", "dtype"),
    [
        ((1, 1), 1, "float32"),
        ((1, 1), 4, "bfloat16"),
        ((1, 8), 1, "bfloat16"),
        ((2, 4), 4, "float16"),
        ((2, 4), 8, "float32"),
        ((8, 1), 1, "float32"),
        ((8, 1), 8, "bfloat16"),
    ],
)
def test_resident_rows_have_the_bits_of_rows_from_the_host(locations, mesh, lanes, dtype):
    mesh = sharding.make_mesh(*mesh, BATCH, 8)
    for stores in (locations[dtype][:1], locations[dtype]):
        stream = stream_of(stores, lanes)
        host = rows_of("no", stream, mesh, 2, [1] * 40)  # over an epoch
        batches = loader.batches(*stream, 2)
        np.testing.assert_array_equal(host, [next(batches).view(host.dtype) for _ in range(40)])
        batches.close()
        np.testing.assert_array_equal(rows_of("yes", stream, mesh, 2, [1] * 40), host)
        for choice in ("no", "yes"):
            np.testing.assert_array_equal(rows_of(choice, stream, mesh, 2, [6, 6, 6, 5, 6, 6, 5]), host)


def test_each_device_holds_its_own_lanes_if_it_can(locations):
    for lanes, devices, is_local in ((1, 1, True), (8, 8, True), (8, 4, True), (4, 8, False), (1, 8, False)):
        stream = stream_of(locations["float16"], lanes)
        layout = resident.make_layout(stream.order, devices)
        assert layout.is_local == is_local
        held = [chunk for lane in stream.order.streams for source in lane for chunk in source.chunks]
        assert sorted(layout.chunks) == sorted(held)
        assert layout.rows * devices < loader.length(held) + devices * (1 if not is_local else 2 * 32 * lanes)
        ends = [first + chunk.stop - chunk.start for first, chunk in zip(layout.first, layout.chunks, strict=True)]
        assert all(end <= first for end, first in zip(ends, layout.first[1:], strict=False))
        assert ends[-1] <= layout.rows * devices


def test_pieces_of_any_size_load_the_same_rows(locations, monkeypatch):
    stream, mesh = stream_of(locations["float16"], 1), sharding.make_mesh(1, 4, BATCH, 8)
    whole = np.asarray(resident.load(stream, mesh).rows_ND).view(np.uint16)
    for rows in (1, 10, 33, 100):
        monkeypatch.setattr(resident, "PIECE_BYTES", rows * 6 * 2)
        np.testing.assert_array_equal(np.asarray(resident.load(stream, mesh).rows_ND).view(np.uint16), whole)


class Devices:
    """A mesh of one accelerator with a limit on its memory."""

    size = 1

    def __init__(self, limit, used):
        self.platform = "gpu"
        self.devices = np.array([[self]])
        self.local_devices = [self]
        self.stats = {"bytes_limit": limit, "bytes_in_use": used}

    def memory_stats(self):
        return self.stats


def test_rows_stay_on_an_accelerator_if_they_fit_into_half_of_its_free_memory(locations):
    stream = stream_of(locations["float16"], 1)
    needed = resident.device_bytes(stream, 1)
    assert needed == stream.order.rows * 6 * 2
    assert feeds.is_resident("auto", [stream], Devices(2 * needed + 100, 100))
    assert not feeds.is_resident("auto", [stream], Devices(2 * needed + 99, 100))
    assert not feeds.is_resident("auto", [stream, stream], Devices(3 * needed, 0))
    assert feeds.is_resident("yes", [stream, stream], Devices(2 * needed, 0))
    assert not feeds.is_resident("no", [stream], Devices(10 * needed, 0))
    with pytest.raises(InputError, match=r"config.data.resident is 'yes', but .* need 0.00 GiB on each device"):
        feeds.is_resident("yes", [stream], Devices(needed, 1))


def test_rows_with_more_places_than_an_int32_do_not_stay(locations, monkeypatch):
    stream, devices = stream_of(locations["float16"], 1), Devices(2**40, 0)
    rows = stream.order.rows
    monkeypatch.setattr(resident, "MOST_PLACES", rows)
    assert feeds.is_resident("auto", [stream], devices)
    assert feeds.is_resident("yes", [stream], devices)
    monkeypatch.setattr(resident, "MOST_PLACES", rows - 1)
    assert not feeds.is_resident("auto", [stream], devices)
    with pytest.raises(InputError, match=rf"is 'yes', but .* need {rows:,} places .* at most {rows - 1:,} are"):
        feeds.is_resident("yes", [stream], devices)


def test_on_a_cpu_rows_stay_only_if_asked(locations):
    stream, mesh = stream_of(locations["float32"], 1), sharding.make_mesh(1, 1, BATCH, 8)
    assert not feeds.is_resident("auto", [stream], mesh)
    assert feeds.is_resident("yes", [stream], mesh)
