"""Place a pipeline's components on a device: config.model.device, compile and offload.

Components are loaded and fingerprinted on the CPU first. ``compile`` compiles the forward function of each repeated
block separately, so that all blocks share the compiled code. Hooks belong to whole blocks, so they run outside of the
compiled code and may end a pass. ``offload`` keeps weights on the CPU: ``model`` moves one component at a time to the
device, ``sequential`` one layer.

Quantized components are moved as a whole and never cast. A pipeline that the caller has built is left where it is.
"""

import typing

import accelerate
import accelerate.hooks
import accelerate.utils
import torch

from revelio_jax.config import ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.source import PipelineSource


def place(
    source: PipelineSource,
    pipe: typing.Any,
    components: typing.Iterable[str],
    model: ModelConfig,
    device: torch.device,
) -> None:
    """Place ``components`` of a pipeline. Raise InputError if a quantized component cannot be placed as asked."""
    if source.pipe is not None:
        return
    running: list[torch.nn.Module] = []  # the component on the device, if components are offloaded
    for component in components:
        part = getattr(pipe, component)
        is_quantized = getattr(part, "is_quantized", False)
        if model.compile:
            for block in _blocks(pipe, component):
                block.forward = torch.compile(block.forward)
        if model.offload == "sequential":
            if is_quantized:
                raise InputError(
                    f"config.model.offload is 'sequential'; the {component} is quantized and can only be moved as a "
                    "whole; allowed: none, model"
                )
            accelerate.cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)
        elif model.offload == "model":
            _offload(part, device, running, is_quantized)
        else:
            _move(component, part, device, is_quantized)


class _OneOnDevice(accelerate.hooks.ModelHook):
    """Moves a component to the device before it runs, and the one that ran before it back to the CPU.

    ``running`` holds the component on the device; all components share it. This does not assume an order, because a
    call may end early and steering runs text encoders by themselves. ``can_move`` is False for quantized components
    that their library refuses to move.
    """

    def __init__(self, device: torch.device, running: list[torch.nn.Module], can_move: bool):
        self.execution_device, self.running, self.can_move = device, running, can_move

    def pre_forward(self, module: torch.nn.Module, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        if self.can_move and module not in self.running:
            with torch.inference_mode(False):  # torchao cannot move weights that are inference tensors again
                while self.running:
                    self.running.pop().to("cpu")
                module.to(self.execution_device)
            self.running.append(module)
        return accelerate.utils.send_to_device((args, kwargs), self.execution_device)


def _offload(part: torch.nn.Module, device: torch.device, running: list[torch.nn.Module], is_quantized: bool) -> None:
    """Keep a component on the CPU until it runs."""
    can_move = True
    try:
        part.to("cpu")
    except (ValueError, RuntimeError, NotImplementedError):
        if not is_quantized:
            raise
        can_move = False
    accelerate.hooks.add_hook_to_module(part, _OneOnDevice(device, running, can_move), append=True)


def _move(component: str, part: torch.nn.Module, device: torch.device, is_quantized: bool) -> None:
    """Move a component to the device. Raise InputError if it is quantized and its library refuses."""
    if is_quantized and next(part.parameters()).device.type == device.type:
        return  # libraries quantize on an accelerator of their choice
    try:
        part.to(device)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        if not is_quantized:
            raise
        raise InputError(
            f"config.model.device is {str(device)!r}; the quantized {component} cannot be moved there: {error}"
        ) from error


def _blocks(pipe: typing.Any, component: str) -> list[torch.nn.Module]:
    """Return the repeated blocks that diffusers lists for a component, otherwise the modules of its hook points."""
    model = getattr(pipe, component)
    names = getattr(model, "_repeated_blocks", None) or ()
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    # One block may have two hook points.
    points = (hook_points.resolve(pipe, name) for name in hook_points.point_names(pipe))
    return blocks or list({point.module: None for point in points if point.component == component})
