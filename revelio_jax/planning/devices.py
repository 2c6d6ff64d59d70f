"""Descriptions of chips that this machine does not have, for which XLA compiles all the same.

libtpu describes a TPU slice by its name. The CUDA plugin of JAX describes GPUs by a text with the properties that a
driver would report; it needs neither CUDA nor a driver. Nothing is tuned by timing this way.
"""

import functools
import importlib.util
import os
import typing

import jax

from revelio_jax.errors import InputError
from revelio_jax.planning.chips import CHIPS, parse_topology

PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")

# Properties of the SXM modules as published by NVIDIA and reported by their drivers: cores, compute capability,
# bytes of L2, Hz of the clock, bytes per second and bytes of HBM. A field of XLA's GpuTargetConfigProto each.
GPUS = {
    "h100": (132, 9, 52_428_800, 1.98, 3_352_320_000_000, 84_942_979_072),
    "h200": (132, 9, 52_428_800, 1.98, 4_800_000_000_000, 151_397_597_184),
    "b200": (148, 10, 132_644_864, 1.965, 7_672_320_000_000, 191_514_411_008),
}
TARGET = """
gpu_device_info {{
  core_count: {}
  cuda_compute_capability {{ major: {} }}
  l2_cache_size: {}
  clock_rate_ghz: {}
  memory_bandwidth: {}
  device_memory_size: {}
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "NVIDIA {}"
"""


def can_compile(kind: str) -> bool:
    """Return whether XLA's compiler for a kind of chip is installed."""
    if CHIPS[kind].platform == "tpu":
        return importlib.util.find_spec("libtpu") is not None
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(name) is not None for name in PLUGINS)


@functools.cache
def topology_devices(topology: str) -> tuple[typing.Any, ...]:
    """Return the chips of a slice, which this machine need not have. Raise InputError if XLA cannot describe it."""
    kind, chips = parse_topology(topology)
    describe = _tpus if CHIPS[kind].platform == "tpu" else functools.partial(_gpus, kind, chips)
    try:
        description = describe(topology)
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--topology {topology}: XLA cannot describe it: {reason}") from error
    return tuple(description.devices)


def _tpus(topology: str) -> typing.Any:
    from jax.experimental import topologies

    # libtpu reads these when it is loaded. It must not ask a metadata server, and must not claim the chips of this
    # machine, which another run may hold.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # avoids a warning
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    single = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    return topologies.get_topology_desc(topology_name=topology, platform="tpu", **single)


def _gpus(kind: str, chips: int, topology: str) -> typing.Any:
    from jax.experimental import topologies

    target = TARGET.format(*GPUS[kind], kind.upper())
    node = min(chips, CHIPS[kind].node or chips)
    # slices x processes x GPUs per process: InfiniBand connects the nodes of one slice
    shape = f"1x{chips // node}x{node}"
    return topologies.get_topology_desc(topology, platform="cuda", target_config=target, topology=shape)
