"""The hook at one hook point of a pipeline."""

import typing

import torch

from revelio_jax.pipelines import hooks
from revelio_jax.steering.attachment import HookPointPart
from revelio_jax.steering.concept import execution_device


class SteeringHook:
    """Adds the changes of all attachments at one hook point, each computed from the same activations.

    ``active`` are the parts that act in the current pass. It is set before the pass, outside of compiled code; the hook
    itself only reads tensors.
    """

    def __init__(self, point: hooks.HookPoint):
        self.point = point
        self.parts: list[HookPointPart] = []
        self.active: tuple[HookPointPart, ...] = ()
        self.device = execution_device(point.module)
        self.reads_difference = False
        self.grid: tuple[int, int] | None = None  # grid of the positions, for modules whose output is not a map
        self.recording: list[torch.Tensor] | None = None  # activations of each pass, while it is a list
        _ = point.argument  # cache it now, because compiled code cannot inspect signatures
        self.remove = hooks.after_forward(point.module, self.after)

    def add(self, part: HookPointPart) -> None:
        """Add the part of an attachment."""
        self.parts.append(part)
        part.device = self.device
        self.reads_difference = any(part.reads_difference for part in self.parts)

    def discard(self, part: HookPointPart) -> None:
        """Remove the part of an attachment; the hook itself is removed with its last part."""
        self.parts.remove(part)
        self.active = ()
        self.reads_difference = any(part.reads_difference for part in self.parts)
        if not self.parts:
            self.remove()

    def after(self, args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any], output: typing.Any) -> typing.Any:
        """Return ``output`` with x + change, or None if no part is active, so that no bit changes."""
        if self.recording is not None:
            self.recording.append(self.point.read(output).float())
        if not self.active:
            return None
        x_BTD = self.point.read(output)
        if not torch.compiler.is_compiling() and self.device != x_BTD.device:
            self.device = x_BTD.device
            for part in self.parts:
                part.set_device(self.device)
        with torch.autocast(x_BTD.device.type, enabled=False):  # the SAE computes in float32
            x_BTD = x_BTD.float()
            difference_BTD = x_BTD
            if self.reads_difference:
                difference_BTD = x_BTD - self.point.read_input(args, kwargs).float()
            grid = self.point.grid(output) or self.grid
            change = 0.0
            for part in self.active:
                change = change + part.change(difference_BTD if part.reads_difference else x_BTD, grid)
            return self.point.replace(output, x_BTD + change)
