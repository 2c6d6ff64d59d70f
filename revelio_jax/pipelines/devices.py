"""Find torch devices: the device of the config, and the device that a module computes on."""

import typing

import torch

from revelio_jax.errors import InputError


def device(name: str, worker: int = 0) -> torch.device:
    """Return a torch device by name; auto picks cuda, then mps, then cpu. Raise InputError if it is not available.

    With auto, worker N uses GPU N modulo the number of GPUs.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        kind = next(kind for kind, is_available in available.items() if is_available)
        return torch.device(kind, worker % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"config.model.device is {name!r}; it must be auto, cuda, cuda:1, mps or cpu") from error
    if not available.get(chosen.type, True):
        raise InputError(f"config.model.device is {name!r}; {chosen.type} is not available on this machine")
    if chosen.type == "cuda" and (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"config.model.device is {name!r}; this machine has {count} GPUs, numbered from cuda:0")
    try:
        if chosen.type not in available:
            torch.zeros(1, device=chosen).item()  # refuses meta, which holds no values
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"config.model.device is {name!r}; it does not work on this machine: {error}") from error
    return chosen


def execution_device(module: torch.nn.Module) -> torch.device:
    """Return the device that a module computes on. With offloading its weights are on another device, or on meta."""
    for inner in module.modules():
        hook = getattr(inner, "_hf_hook", None)  # accelerate
        for each in getattr(hook, "hooks", (hook,)):
            device = getattr(each, "execution_device", None)
            if device is not None:
                return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if (group := _group_offloading(inner)) is not None:
            return torch.device(group.config.onload_device)
    return next(module.parameters()).device


def _group_offloading(module: torch.nn.Module) -> typing.Any:
    """Return the hook of diffusers' group offloading, or None. Its weights are on the CPU between passes."""
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook("group_offloading")
