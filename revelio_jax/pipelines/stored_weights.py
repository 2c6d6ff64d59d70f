"""Read weights where libraries keep them: outside of an offloaded module, or as several tensors of a quantized one."""

import typing
from collections.abc import Iterator

import torch


def stored(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor ``name`` of a module with its values.

    With sequential offloading the module has it on meta, and the hook of accelerate has its values. A tensor on meta
    whose values are not found is returned as it is.
    """
    if not tensor.is_meta:
        return tensor
    hook: typing.Any = getattr(module, "_hf_hook", None)
    for inner in getattr(hook, "hooks", (hook,)):
        values = getattr(inner, "weights_map", None)
        if values is not None and name in values:
            return values[name]
    return tensor


def plain_tensors(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the plain tensors that hold the values of a tensor, by name: several for a quantized one of torchao."""
    if hasattr(tensor, "__tensor_flatten__"):
        for attribute in typing.cast("typing.Any", tensor).__tensor_flatten__()[0]:
            yield from plain_tensors(f"{name}.{attribute}", getattr(tensor, attribute))
        return
    quantization = getattr(tensor, "quant_type", None)  # GGUF
    # Quantized parameters of diffusers redefine what functions do.
    with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
        yield name if quantization is None else f"{name} {quantization}", tensor.detach().as_subclass(torch.Tensor)
