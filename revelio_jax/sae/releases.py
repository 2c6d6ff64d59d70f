"""Refuse releases of JAX that compile the train step badly for NVIDIA GPUs."""

import typing
from collections.abc import Sequence

import jax

from revelio_jax.errors import InputError

# Before 0.11.1, scatter-adds of float scalars compile to loops of compare-and-swap. Before 0.11.2, every top-k of more
# than 16 values is a sort of the whole row.
FIRST_FOR_CUDA = (0, 11, 2)


def check(devices: Sequence[typing.Any]) -> None:
    """Raise InputError if one of ``devices`` is a CUDA device and JAX is older than 0.11.2.

    ROCm devices, which JAX also calls ``gpu``, are accepted: the defects were seen in programs for CUDA only.
    """
    if jax.__version_info__ < FIRST_FOR_CUDA and any(map(_is_cuda, devices)):
        raise InputError(
            f"jax is {jax.__version__}; on CUDA devices it must be at least {'.'.join(map(str, FIRST_FOR_CUDA))}, "
            "because older releases compile top-k and scatter-adds to very slow programs; "
            "pip install 'revelio_jax[train-cuda13]' with Python 3.12 or newer, or set JAX_PLATFORMS=cpu"
        )


def _is_cuda(device: typing.Any) -> bool:
    return device.platform in ("gpu", "cuda") and "cuda" in device.client.platform_version.lower()
