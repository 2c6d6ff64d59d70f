"""Where the parts of a model run, and how: config.model.device, compile and offload.

Parts are loaded on the CPU, fingerprinted there, and then placed. ``compile`` compiles the forward of each
repeated block by itself: the code of one serves all, and hooks, which sit on whole blocks, run outside of it
and may end a pass. ``offload`` leaves weights on the CPU: ``model`` moves a part to the device while it runs,
``sequential`` every layer.
"""

import typing

import accelerate
import torch

from revelio_jax.config import ModelConfig
from revelio_jax.pipelines import hook_points


def place(pipe: typing.Any, components: typing.Iterable[str], model: ModelConfig, device: torch.device) -> None:
    """Make ready ``components`` of a pipeline, in the order in which they run."""
    before = None  # what leaves the device when the next one comes
    for component in components:
        part = getattr(pipe, component)
        if model.compile:
            for block in _blocks(pipe, component):
                block.forward = torch.compile(block.forward)
        if model.offload == "none":
            part.to(device)
        elif model.offload == "model":
            _, before = accelerate.cpu_offload_with_hook(part, device, before)
        else:
            accelerate.cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)


def _blocks(pipe: typing.Any, component: str) -> list[torch.nn.Module]:
    """What a model repeats: as diffusers says it, else its sites."""
    part = getattr(pipe, component)
    names = getattr(part, "_repeated_blocks", None) or ()
    found = [module for module in part.modules() if type(module).__name__ in names]
    # A block of FLUX has two sites.
    every = (hook_points.resolve(pipe, name) for name in hook_points.known_sites(pipe))
    return found or list({site.module: None for site in every if site.component == component})
