"""Choices that XLA makes by timing, saved with the run.

On a GPU, XLA times several forms of a product and takes the fastest, which need not be the same the next time. The
forms round differently. With its choices in the folder of the run, a resumed run repeats them, on the same kind of GPU
and with the same release of JAX.
"""

import pathlib

import jax


def compiler_options(folder: pathlib.Path, mesh: jax.sharding.Mesh) -> dict[str, str] | None:
    """Return the options of ``jax.jit`` that read and save the choices, or None if the devices need none."""
    if mesh.devices.flat[0].platform != "gpu":
        return None
    choices = folder.absolute() / "autotune"
    choices.mkdir(parents=True, exist_ok=True)
    return {"xla_gpu_per_fusion_autotune_cache_dir": str(choices)}
