"""Compile for an H100 on a machine without one."""

import importlib.metadata

import jax
import pytest
from jax.experimental import topologies

# What XLA asks the driver about the card: NVIDIA H100 SXM with 80 GB.
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def mesh(data: int = 1, feature: int = 1) -> jax.sharding.Mesh:
    """Return a mesh of H100s that cannot run anything, or skip the test where nothing compiles for them."""
    try:
        plugin = importlib.metadata.version("jax-cuda13-plugin")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs jax-cuda13-plugin, which compiles for an H100")
    if jax.__version_info__ < (0, 12):
        pytest.skip(f"the kernels need jax 0.12; {jax.__version__} is installed")
    if plugin != jax.__version__:
        pytest.skip(f"jax-cuda13-plugin {plugin} does not match jax {jax.__version__}")
    topology = topologies.get_topology_desc(platform="cuda", target_config=TARGET, topology=f"1x1x{data * feature}")
    return topologies.make_mesh(topology, (data, feature), ("data", "feature"))


def compiled(function, *arguments, mesh, specs=None, donate=()):
    """Return ``function`` compiled for ShapeDtypeStructs, which are replicated over the mesh if no specs are given."""
    specs = specs or [jax.sharding.PartitionSpec()] * len(arguments)
    placed = [
        jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))
        for one, spec in zip(arguments, specs, strict=True)
    ]
    return jax.jit(function, donate_argnums=donate).lower(*placed).compile()


def kernels(program) -> int:
    """Return how many Pallas kernels a compiled program launches."""
    return program.as_text().count('custom_call_target="mosaic_gpu')
