"""Compile for an H100 on a machine without one."""

import importlib.metadata

import jax
import pytest

from revelio_jax.planning.devices import topology_devices
from revelio_jax.sae import sharding


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
    return sharding.make_mesh(data, feature, data * feature, feature, topology_devices(f"h100:{data * feature}"))


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
