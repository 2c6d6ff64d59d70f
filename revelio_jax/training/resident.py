"""Training rows that stay on the devices.

All training rows are loaded once, in the dtype of the stores, and split over the devices. The rows of a step are
gathered there in the order of the loader, so the host sends one int32 per row instead of the row.

If the lanes are a multiple of the devices, each device holds the lanes whose part of a batch it gets, and gathers
alone. Otherwise rows are split evenly. Each device then gathers the rows it holds, and the devices exchange them.
"""

import bisect
import concurrent.futures
import functools
import itertools
import typing
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from revelio_jax.sae import sharding
from revelio_jax.training import loader, processes, shuffled_rows
from revelio_jax.training.loader import Chunk, Order, RowStream
from revelio_jax.training.mixture import Mixture

PIECE_BYTES = 2**26  # read and transferred at a time
MOST_PLACES = 2**31  # on all devices together, because a place is an int32


class Layout(typing.NamedTuple):
    """The place of every training row; device p holds ``rows`` places from p x ``rows`` on.

    ``first`` is the place of the first row of each of ``chunks``, increasing. ``is_local`` is True if each device holds
    the rows that it gets.
    """

    rows: int
    chunks: list[Chunk]
    first: list[int]
    is_local: bool


class ResidentRows(typing.NamedTuple):
    """Rows [devices x layout.rows, D] in the dtype of the stores, split over the devices by rows."""

    rows_ND: jax.Array
    layout: Layout


def make_layout(order: Order, devices: int) -> Layout:
    """Return the places of the training rows on ``devices`` devices."""
    parts = devices if order.lanes % devices == 0 else 1
    lanes = order.lanes // parts
    chunks = [
        # Sorted, because consecutive chunks are read faster.
        sorted(chunk for lane in order.streams[i : i + lanes] for stream in lane for chunk in stream.chunks)
        for i in range(0, order.lanes, lanes)
    ]
    rows = -(-max(map(loader.length, chunks)) * parts // devices)
    first: list[int] = []
    for i, part in enumerate(chunks):
        first += itertools.accumulate((chunk.stop - chunk.start for chunk in part[:-1]), initial=i * rows)
    return Layout(rows, [chunk for part in chunks for chunk in part], first, parts == devices)


def places_of_all(stream: RowStream, devices: int) -> int:
    """Return the number of places on all devices together."""
    return make_layout(stream.order, devices).rows * devices


def device_bytes(stream: RowStream, devices: int) -> int:
    """Return the memory that the rows need on each device."""
    mixture = stream.mixture
    return places_of_all(stream, devices) // devices * mixture.d * mixture.dtype.itemsize


def places(order: Order, layout: Layout, step: int, lanes: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the places of the rows of each batch from ``step`` on, for the given lanes: int32 [B l / L]."""
    first = dict(zip(layout.chunks, layout.first, strict=True))

    def number(chunk: Chunk) -> np.ndarray:
        return np.arange(first[chunk], first[chunk] + chunk.stop - chunk.start, dtype=np.int32)

    return loader.row_numbers(order, step, number, lanes)


def load(stream: RowStream, mesh: jax.sharding.Mesh) -> ResidentRows:
    """Read the training rows onto the devices; each process reads the rows of its own devices."""
    mixture, order = stream
    layout = make_layout(order, mesh.size)
    row_bytes = mixture.d * mixture.dtype.itemsize
    # Equal pieces compile once. The last one may repeat rows of the piece before.
    count = -(-layout.rows // -(-layout.rows * row_bytes // PIECE_BYTES))
    begins = [min(begin, layout.rows - count) for begin in range(0, layout.rows, count)]
    here = [(i * layout.rows, device) for i, device in enumerate(mesh.devices.flat) if device in mesh.local_devices]
    blocks: list[jax.Array] = []
    with concurrent.futures.ThreadPoolExecutor(shuffled_rows.READERS) as readers:
        bar = tqdm(
            total=len(here) * len(begins) * count * row_bytes, unit="B", unit_scale=True, dynamic_ncols=True,
            desc="rows onto the devices", disable=not processes.is_first(),
        )  # fmt: skip
        for start, device in here:
            block_ND = jnp.zeros((layout.rows, mixture.d), mixture.dtype, device=device)
            for begin in begins:
                piece_MD = _read(mixture, layout, start + begin, count, readers)
                jax.block_until_ready(block_ND)  # at most two pieces are in host memory
                block_ND = _write(block_ND, jax.device_put(piece_MD, device), np.int32(begin))
                bar.update(piece_MD.nbytes)
            blocks.append(block_ND)
        bar.close()
    place = jax.NamedSharding(mesh, sharding.HOST_BATCH)
    shape = (mesh.size * layout.rows, mixture.d)
    return ResidentRows(jax.make_array_from_single_device_arrays(shape, place, blocks), layout)


def _read(mixture: Mixture, layout: Layout, begin: int, count: int, readers: concurrent.futures.Executor) -> np.ndarray:
    """Return the rows of ``count`` places from ``begin`` on: [M, D]. Places without a row hold zeros."""
    piece_MD = np.zeros((count, mixture.d), mixture.dtype)

    def read(index: int) -> None:
        first, (site, start, stop) = layout.first[index], layout.chunks[index]
        low, high = max(first, begin), min(first + stop - start, begin + count)
        if low < high:
            mixture.sites[site].read_into(start + low - first, piece_MD[low - begin : high - begin])

    indices = range(bisect.bisect_right(layout.first, begin) - 1, bisect.bisect_left(layout.first, begin + count))
    for _ in readers.map(read, indices):
        pass
    return piece_MD


@functools.partial(jax.jit, donate_argnums=0)
def _write(block_ND: jax.Array, piece_MD: jax.Array, begin: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(block_ND, piece_MD, (begin, 0))


def make_gather(rows: ResidentRows, count: int, mesh: jax.sharding.Mesh) -> Callable[[np.ndarray], jax.Array]:
    """Return ``gather(place_SB)``, which returns the rows with these places: [B, D] if ``count`` is 1, else [S, B, D].

    Rows are split over all devices, as batches from the host are. The places, int32, are those of the lanes of this
    process if the layout is local, otherwise those of the whole batch.
    """
    size, is_local = rows.layout.rows, rows.layout.is_local

    def local(block_ND: jax.Array, place_SB: jax.Array) -> jax.Array:
        device = jax.lax.axis_index(sharding.AXES)
        # Clipped, because only the holder of a row has a valid index; the others' rows are not used.
        held_SBD = block_ND.at[place_SB - device * size].get(mode="clip")
        if is_local:
            return held_SBD
        steps, batch, width = held_SBD.shape
        own = batch // mesh.size
        parts_SPBD = held_SBD.reshape(steps, mesh.size, own, width)
        parts_SPBD = jax.lax.all_to_all(parts_SPBD, sharding.AXES, 1, 1, tiled=True)  # axis P is now the sender
        sender_SB = jax.lax.dynamic_slice_in_dim(place_SB, device * own, own, 1) // size
        return jnp.take_along_axis(parts_SPBD, sender_SB[:, None, :, None], 1)[:, 0]

    place_spec = sharding.STACKED_ROWS if is_local else sharding.REPLICATED
    exchange = jax.shard_map(
        local, mesh=mesh, in_specs=(sharding.HOST_BATCH, place_spec), out_specs=sharding.STACKED_BATCH
    )

    @jax.jit
    def gather(rows_ND: jax.Array, place_SB: jax.Array) -> jax.Array:
        x_SBD = exchange(rows_ND, place_SB)
        return x_SBD if count > 1 else x_SBD[0]

    def put_and_gather(place_SB: np.ndarray) -> jax.Array:
        place = jax.NamedSharding(mesh, place_spec)
        return gather(rows.rows_ND, jax.make_array_from_process_local_data(place, place_SB))

    return put_and_gather
