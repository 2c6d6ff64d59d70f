"""Recognize that the weights, the adapters or the vocabulary of a pipeline changed since a text was encoded.

The values of all weights are read, because nothing else shows every change: ``param.data.mul_(2)`` and the fusing of
a LoRA change neither the identity nor the version counter of a tensor. A call of the pipeline reads the same weights
at least once for every step.
"""

import typing
from collections.abc import Hashable, Sequence

import numpy as np
import torch

from revelio_jax.pipelines import hook_points, hooks
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.stored_weights import plain_tensors, stored
from revelio_jax.steering.concept import tokenizer_of

BLOCK = 64  # words; values that only change places inside a block are not noticed
SETTINGS = (bool, int, float, str, list, tuple, dict)
# Attributes of a peft layer that choose among its adapters; other attributes with an underscore are caches.
ADAPTER_FIELDS = ("_active_adapter", "_disable_adapters")


def fingerprint(pipe: typing.Any, points: Sequence[hooks.HookPoint]) -> Hashable:
    """Return a value that changes with anything in the pipeline that the activations of a text depend on.

    At a text encoder these are its weights, its adapters with their scales, and its tokenizer, and the same of the
    encoder that computes the pooled vector. At a hook point of the denoiser, all text encoders and the denoiser count.
    Moving weights to another device changes nothing. The value is valid in this process only.
    """
    parts = {name: getattr(pipe, name, None) for name in _components(pipe, points)}
    return tuple((name, _of_model(part), _of_tokenizer(pipe, name)) for name, part in parts.items() if part is not None)


def _components(pipe: typing.Any, points: Sequence[hooks.HookPoint]) -> dict[str, None]:
    """Return the names of the components that activations at the hook points depend on, in order."""
    family = family_of(pipe)
    names = [point.component for point in points]
    if any(hook_points.is_denoiser_point(point.name) for point in points):
        names += family.text_encoders.values()
    elif family.pooled is not None:
        names.append(family.pooled.component)
    return dict.fromkeys(names)


def _of_tokenizer(pipe: typing.Any, component: str) -> str:
    """Return the settings of a text encoder's tokenizer, which include its added tokens; "" for a denoiser."""
    return repr(tokenizer_of(pipe, component)) if component in family_of(pipe).text_encoders.values() else ""


def _of_model(model: torch.nn.Module) -> int:
    parts: list[Hashable] = []
    sums: list[torch.Tensor] = []
    for path, module in model.named_modules():
        parts.append(path)
        for name, value in vars(module).items():
            if isinstance(value, SETTINGS) and (not name.startswith("_") or name in ADAPTER_FIELDS):
                parts.append((name, _settings(value)))
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            for full_name, part in plain_tensors(name, stored(module, name, tensor)):
                parts.append((full_name, part.dtype, tuple(part.shape)))
                sums.append(checksum(part))
    for device in {one.device for one in sums}:  # one transfer from each device
        parts += torch.stack([one for one in sums if one.device == device]).tolist()
    return hash(tuple(parts))


def _settings(value: typing.Any) -> Hashable:
    """Return a hashable copy of plain values, with other objects replaced by their class.

    Floats are rounded, because a pipeline multiplies the scale of a LoRA for a call and divides it afterwards.
    """
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, dict):
        pairs = typing.cast("dict[typing.Any, typing.Any]", value).items()
        return tuple((_settings(key), _settings(one)) for key, one in pairs)
    if isinstance(value, list | tuple):
        return tuple(_settings(one) for one in typing.cast("list[typing.Any]", value))
    return value if value is None or isinstance(value, bool | int | str) else type(value)


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return a number modulo 2^64, int64 [], that depends on every bit of a tensor, on the same device.

    It is the sum of blocks of BLOCK words of 8 bytes, each multiplied by an odd number that depends on its place.
    """
    if tensor.is_meta or not tensor.numel():
        return torch.zeros((), dtype=torch.int64)
    bytes_N = tensor.contiguous().view(-1).view(torch.uint8)
    if len(bytes_N) % 8 or bytes_N.storage_offset() % 8:
        bytes_N = torch.nn.functional.pad(bytes_N, (0, -len(bytes_N) % 8))
    words_N = bytes_N.view(torch.int64)
    whole = len(words_N) // BLOCK * BLOCK
    blocks_MB, rest = words_N[:whole].view(-1, BLOCK), words_N[whole:]
    if tensor.device.type == "cpu":  # numpy sums integers twice as fast as torch
        sums_M = torch.from_numpy(np.add.reduce(blocks_MB.numpy(), axis=1))
    else:
        sums_M = blocks_MB.sum(1)
    sums_M = torch.cat([sums_M, rest])
    return (sums_M * torch.arange(1, 2 * len(sums_M), 2, device=tensor.device)).sum()
