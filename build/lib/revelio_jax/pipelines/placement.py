"""Place a pipeline's components on a device: config.model.device, compile and offload.

Components are loaded and fingerprinted on the CPU first. ``compile`` compiles the forward of each repeated block
separately: all blocks share the code, and hooks, which sit on whole blocks, run outside of it and may end a pass.
``offload`` keeps weights on the CPU: ``model`` moves one component at a time to the device, ``sequential`` one layer.
"""

import typing

import accelerate
import torch

from revelio_jax.config import ModelConfig
from revelio_jax.pipelines import hook_points


def place(pipe: typing.Any, components: typing.Iterable[str], model: ModelConfig, device: torch.device) -> None:
    """Place ``components`` of a pipeline, given in the order in which they run."""
    previous = None  # leaves the device when the next component arrives
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
    """Return the blocks that a model repeats: those that diffusers names, otherwise its hook points."""
    part = getattr(pipe, component)
    names = getattr(part, "_repeated_blocks", None) or ()
    blocks = [module for module in part.modules() if type(module).__name__ in names]
    # One block may have two hook points.
    points = (hook_points.resolve(pipe, name) for name in hook_points.known_sites(pipe))
    return blocks or list({point.module: None for point in points if point.component == component})
