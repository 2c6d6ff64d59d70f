"""Refuse caches that skip blocks of a denoiser: a skipped block must not be steered, a cached change not twice."""

import typing

import torch

from revelio_jax.pipelines.hooks import HookPoint

# Hooks of diffusers under which every block still computes its output once in every pass. Others skip blocks or rows of
# a batch; hooks that are not known are refused with them.
HARMLESS = (
    "group_offloading",
    "lazy_prefetch_group_offloading",
    "layer_execution_tracker",
    "layerwise_casting",
    "peft_autocast_disable",
    "pyramid_attention_broadcast",
    "text_kv_cache",
)


def cache_on(denoiser: torch.nn.Module) -> str | None:
    """Return the name of a hook of diffusers that skips blocks of a denoiser, None if there is none."""
    for module in denoiser.modules():
        registry: typing.Any = getattr(module, "_diffusers_hook", None)
        for name in getattr(registry, "hooks", {}):
            if not name.startswith(HARMLESS):
                return name
    return None


def refusal(point: HookPoint, denoiser: torch.nn.Module) -> str | None:
    """Return why a hook point of the denoiser cannot be steered with the caches that are enabled, None if it can."""
    name = cache_on(denoiser)
    if name is None:
        return None
    return (
        f"the hook {name!r} of diffusers may skip blocks of the {point.component}, whose steering would be lost or "
        "added twice; call disable_cache() on it"
    )
