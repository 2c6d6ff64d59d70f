"""The record of a model in a store, with a fingerprint of the weights that run.

The fingerprint covers adapters that are loaded (LoRA), quantized weights with their scales, and weights that are
offloaded.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterable, Iterator

import torch

from revelio_jax.config import ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines.source import PipelineSource, component_config
from revelio_jax.pipelines.stored_weights import plain_tensors, stored

if typing.TYPE_CHECKING:
    from revelio_jax.store import ModelRecord


@dataclasses.dataclass(frozen=True)
class Component:
    """A component of a pipeline and its name."""

    component: str
    model: torch.nn.Module


def model_record(
    model: ModelConfig, source: PipelineSource, device: torch.device, parts: Iterable[typing.Any]
) -> "ModelRecord":
    """Return the record of a model in a store; ``parts`` are the components that the rows depend on.

    Raise InputError if the weights cannot be read.
    """
    parts = list(parts)
    record: ModelRecord = {
        "id": model.id,
        "revision": model.revision or "",
        "family": model.family,
        "dtype": model.dtype,
        "device": device.type,
        "fingerprint": fingerprint(source, parts),
    }
    if model.compile:
        record["compile"] = True  # compiled kernels round differently
    if source.pipe is not None:
        record["pipeline"] = type(source.pipe).__name__
        record["dtype"] = ", ".join(dict.fromkeys(str(part.model.dtype).removeprefix("torch.") for part in parts))
    return record


def fingerprint(source: PipelineSource, parts: Iterable[typing.Any]) -> str:
    """Return the sha256 of the components' parameters, as they are in memory, and of their configs.

    Raise InputError if the weights cannot be read.
    """
    digest = hashlib.sha256()
    for part in parts:
        config = component_config(source, part.component)
        digest.update(json.dumps([part.component, config], sort_keys=True).encode())
        try:
            for name, tensor in _weights(part.model):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                content: typing.Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                digest.update(content)
        except (NotImplementedError, RuntimeError, AttributeError, TypeError) as error:
            raise InputError(
                f"{source.subject}; the weights of its {part.component} cannot be read for the store's fingerprint: "
                f"{str(error)[:200]}"
            ) from error
        if adapters := _adapters(part.model):
            digest.update(json.dumps(adapters, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter by name, each followed by the scales that bitsandbytes keeps beside it."""
    read: set[int] = set()  # a tied parameter has several names
    tied = getattr(model, "_tied_weights_keys", None) or ()
    for owner, module in model.named_modules():
        for name, parameter in module.named_parameters(owner, recurse=False):
            if id(parameter) in read or (parameter.device.type == "meta" and name in tied):
                continue
            read.add(id(parameter))
            parameter = stored(module, name.removeprefix(f"{owner}."), parameter)
            if parameter.is_meta:
                raise RuntimeError(f"{name} is on the device meta")
            # torch.compile adds the first prefix, and transformers before 5 the second one, to the same weights.
            name = name.replace("_orig_mod.", "").removeprefix("text_model.")
            yield from plain_tensors(name, parameter)
            yield from _scales(module, name, parameter)


def _scales(module: torch.nn.Module, name: str, parameter: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the scales of a parameter that bitsandbytes has quantized.

    They are not read with ``state_dict``, which changes weights that have run on a CPU.
    """
    state: typing.Any = getattr(parameter, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise RuntimeError("bitsandbytes has repacked them to run on a CPU; pass a pipeline that has not run")
    if hasattr(state, "as_dict"):
        for key, value in state.as_dict(packed=True).items():
            yield f"{name}.{key}", value
    if hasattr(parameter, "SCB"):
        weight: typing.Any = parameter
        owner: typing.Any = module
        yield f"{name}.SCB", owner.state.SCB if weight.SCB is None else weight.SCB  # the first pass moves them


def _adapters(model: torch.nn.Module) -> dict[str, typing.Any]:
    """Return the active adapters and their scales by layer; the weights of the adapters are parameters."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "merged_adapters")}
    return {
        name: [layer.active_adapters, layer.merged_adapters, layer.disable_adapters, layer.scaling]
        for name, layer in layers.items()
    }
