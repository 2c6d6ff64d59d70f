"""Place a pipeline's components on a device: config.model.device, compile and offload.

Components are loaded and fingerprinted on the CPU first. ``compile`` compiles the forward function of each repeated
block separately, so that all blocks share the compiled code. Hooks belong to whole blocks, so they run outside of the
compiled code and may end a pass. ``offload`` keeps weights on the CPU: ``model`` moves one component at a time to the
device, ``sequential`` one layer.
"""

import typing

import accelerate
import torch

from revelio_jax.config import ModelConfig
from revelio_jax.pipelines import hook_points


def place(pipe: typing.Any, components: typing.Iterable[str], model: ModelConfig, device: torch.device) -> None:
    """Place ``components`` of a pipeline; the names must be in the order in which the components run."""
    previous = None  # the offload hook that moves the previous component back to the CPU
    for component in components:
        part = getattr(pipe, component)
        if model.compile:
            for block in _blocks(pipe, component):
                block.forward = torch.compile(block.forward)
        if model.offload == "none":
            part.to(device)
        elif model.offload == "model":
            _, previous = accelerate.cpu_offload_with_hook(part, device, previous)
        else:
            accelerate.cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)


def _blocks(pipe: typing.Any, component: str) -> list[torch.nn.Module]:
    """Return the repeated blocks that diffusers lists for a component, otherwise the modules of its hook points."""
    model = getattr(pipe, component)
    names = getattr(model, "_repeated_blocks", None) or ()
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    # One block may have two hook points.
    points = (hook_points.resolve(pipe, name) for name in hook_points.point_names(pipe))
    return blocks or list({point.module: None for point in points if point.component == component})
