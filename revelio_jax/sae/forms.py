"""The form of the products with codes on a device, and the rule by which config.sae.products=auto chooses it."""

import dataclasses

import jax

from revelio_jax.config import SaeConfig

# GPU: latents per device and per slot of a row from which products with slots are faster than whole products, which
# cost latents / k times the operations. Arithmetic for an H100, not measured.
GPU_LATENTS_PER_SLOT = 256


def resolved(sae: SaeConfig, latents: int, mesh: jax.sharding.Mesh) -> SaeConfig:
    """Return ``sae`` with a definite form of products for ``latents`` latents split over ``mesh``."""
    return on_platform(sae, latents // mesh.shape["feature"], mesh.devices.flat[0].platform)


def on_platform(sae: SaeConfig, latents: int, platform: str) -> SaeConfig:
    """Return ``sae`` with a definite form of products for ``latents`` latents on each device of a platform."""
    if sae.products != "auto":
        return sae
    few = latents < GPU_LATENTS_PER_SLOT * sae.k
    dense = platform != "cpu" and not sae.encode_chunk and (few or platform == "tpu")
    return dataclasses.replace(sae, products="dense" if dense else "sparse")
