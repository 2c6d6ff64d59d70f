"""The form of the products with codes on a device, and the rule by which config.sae.products=auto chooses it."""

import dataclasses

import jax

from revelio_jax.config import SaeConfig

# GPU: latents per device and per slot of a row from which products with slots are faster than whole products, which
# cost latents / k times the operations. Arithmetic for an H100, not measured.
GPU_LATENTS_PER_SLOT = 256


def resolved(sae: SaeConfig, latents: int, mesh: jax.sharding.Mesh) -> SaeConfig:
    """Return ``sae`` without ``auto`` in products and matmul_dtype, for ``latents`` latents split over ``mesh``."""
    if "auto" not in (sae.products, sae.matmul_dtype):
        return sae
    return on_platform(sae, latents // mesh.shape["feature"], mesh.devices.flat[0].platform)


def on_platform(sae: SaeConfig, latents: int, platform: str) -> SaeConfig:
    """Return ``sae`` without ``auto`` for ``latents`` latents on each device of a platform."""
    if sae.matmul_dtype == "auto":
        sae = dataclasses.replace(sae, matmul_dtype="float32" if platform == "cpu" else "bfloat16")
    if sae.products == "auto":
        few = latents < GPU_LATENTS_PER_SLOT * sae.k
        dense = platform != "cpu" and not sae.encode_chunk and (few or platform == "tpu")
        sae = dataclasses.replace(sae, products="dense" if dense else "sparse")
    return sae


def is_dense(sae: SaeConfig) -> bool:
    """Return whether codes are matrices."""
    return sae.products in ("dense", "threshold")
