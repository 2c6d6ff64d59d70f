"""TPU slices that :mod:`revelio_jax.plan` can compile for without the hardware: their rates and their devices."""

import dataclasses
import functools
import importlib.util
import os
import typing

import jax

from revelio_jax.errors import InputError

GIB = 2**30
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published rates of a chip, and the available slices, smallest first."""

    hbm: float  # bytes that XLA may use, slightly less than the chip has
    bytes_s: float  # of HBM
    flops_s: float  # bfloat16, the default of TPUs also for float32 matrices
    sent_s: float  # bytes over all links to other chips, one way
    clock: float  # Hz: flops_s divided by the operations per cycle of the matrix units
    slices: tuple[str, ...]


# Sources: cloud.google.com/tpu/docs/{v5e,v5p,v6e}; hbm from libtpu 0.0.42's out-of-memory message.
# clock: 4 x 128 x 128 multipliers (v5e), 8 x 128 x 128 (v5p), 4 x 256 x 256 (v6e), 2 operations each.
CHIPS = {
    "v5e": Chip(15.75 * GIB, 819e9, 197e12, 200e9, 1.50e9, FLAT),
    "v5p": Chip(95.74 * GIB, 2765e9, 459e12, 600e9, 1.75e9, CUBE),
    "v6e": Chip(31.25 * GIB, 1640e9, 918e12, 400e9, 1.75e9, FLAT),
}


def parse_topology(topology: str) -> tuple[str, tuple[int, ...]]:
    """Return the kind of chip and the shape. Raise InputError if the topology is unknown."""
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].slices:
        known = f"{kind}:" + f", {kind}:".join(CHIPS[kind].slices) if kind in CHIPS else ""
        kinds = "; ".join(f"{kind}:{' '.join(chip.slices)}" for kind, chip in CHIPS.items())
        raise InputError(f"--topology is {topology!r}; allowed: {known or kinds}")
    return kind, tuple(map(int, shape.split("x")))


@functools.cache
def topology_devices(topology: str) -> tuple[typing.Any, ...]:
    """Return the chips of a slice, which this machine need not have. Raise InputError if libtpu cannot be used."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu, XLA's compiler for TPU, is not installed: pip install '.[plan]'")
    from jax.experimental import topologies

    # libtpu reads these when it is loaded. It must not ask a metadata server, and must not claim the chips of this
    # machine, which another run may hold.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # avoids a warning
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    single = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    try:
        description = topologies.get_topology_desc(topology_name=topology, platform="tpu", **single)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--topology {topology}: libtpu cannot describe it: {reason}") from error
    return tuple(description.devices)
