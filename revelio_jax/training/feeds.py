"""Put the rows of every dispatch on the devices.

A feed assembles batches on the host and transfers them ahead, or gathers them from rows that stay on the devices. Both
give the same bits.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from revelio_jax.errors import InputError
from revelio_jax.sae import sharding
from revelio_jax.training import loader, resident
from revelio_jax.training.loader import RowStream

# Share of the free memory of a device that resident rows may take. The rest is for the gradients and the buffers of a
# step, which are not allocated yet.
RESIDENT_SHARE = 0.5

Feed = Callable[[int, Iterable[range]], Generator[jax.Array, None, None]]
"""``feed(start, spans)`` yields the rows of every span of steps after ``start`` finished steps.

Rows are [B, D] if dispatches have one step, otherwise [S, B, D] with the S steps of the span. Close the generator to
stop its threads.
"""


def open_feeds(
    choice: str, streams: Sequence[RowStream], lanes: Sequence[int], count: int, mesh: jax.sharding.Mesh
) -> list[Feed]:
    """Return the feed of each stream for dispatches of up to ``count`` steps; load its rows if they are resident.

    ``choice`` is config.data.resident; ``lanes`` are read by this process. Raise InputError if the rows must be
    resident but do not fit.
    """
    if is_resident(choice, streams, mesh):
        return [_resident(stream, lanes, count, mesh) for stream in streams]
    return [_host(stream, lanes, count, mesh) for stream in streams]


def is_resident(choice: str, streams: Sequence[RowStream], mesh: jax.sharding.Mesh) -> bool:
    """Return whether the rows of all streams stay on the devices, the same on all processes.

    Raise InputError if ``choice`` is ``yes`` but they do not fit into the free memory, or have too many places.
    """
    if choice == "no" or (choice == "auto" and mesh.devices.flat[0].platform == "cpu"):
        return False
    places = max(resident.places_of_all(stream, mesh.size) for stream in streams)
    if places > resident.MOST_PLACES:
        if choice == "auto":
            return False
        raise InputError(
            f"config.data.resident is 'yes', but the training rows need {places:,} places on the devices; at most "
            f"{resident.MOST_PLACES:,} are supported; set it to 'no'"
        )
    needed = sum(resident.device_bytes(stream, mesh.size) for stream in streams)
    free = free_bytes(mesh)
    fits = choice == "yes" if free is None else needed <= (RESIDENT_SHARE if choice == "auto" else 1) * free
    if jax.process_count() > 1:
        fits = bool(np.all(multihost_utils.process_allgather(np.int32(fits))))
    if choice == "yes" and not fits:
        raise InputError(
            f"config.data.resident is 'yes', but the training rows need {needed / 2**30:.2f} GiB on each device, which "
            f"has {(free or 0) / 2**30:.2f} GiB free; set it to 'no', or use more devices"
        )
    return fits


def free_bytes(mesh: jax.sharding.Mesh) -> int | None:
    """Return the free memory of the fullest device of this process, or None if the platform does not report it."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if not all(each and "bytes_limit" in each for each in stats):
        return None
    return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)


def _host(stream: RowStream, lanes: Sequence[int], count: int, mesh: jax.sharding.Mesh) -> Feed:
    # On the devices, because the rows of a step are transferred as soon as they are assembled.
    stack = jax.jit(lambda *x_BD: jnp.stack(x_BD), out_shardings=jax.NamedSharding(mesh, sharding.STACKED_BATCH))

    def put(x_BD: np.ndarray) -> jax.Array:
        return sharding.put_batch(mesh, x_BD)

    def feed(start: int, spans: Iterable[range]) -> Generator[jax.Array, None, None]:
        with contextlib.closing(loader.batches(*stream, start, lanes, put)) as batches:
            for span in spans:
                x_SBD = [next(batches) for _ in span]
                yield stack(*x_SBD) if count > 1 else x_SBD[0]

    return feed


def _resident(stream: RowStream, lanes: Sequence[int], count: int, mesh: jax.sharding.Mesh) -> Feed:
    rows = resident.load(stream, mesh)
    gather = resident.make_gather(rows, count, mesh)
    lanes = lanes if rows.layout.is_local else range(stream.order.lanes)

    def feed(start: int, spans: Iterable[range]) -> Generator[jax.Array, None, None]:
        places = resident.places(stream.order, rows.layout, start, lanes)
        for span in spans:
            yield gather(np.stack([next(places) for _ in span]))

    return feed
