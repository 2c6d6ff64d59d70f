"""The hook at one hook point of a pipeline."""

import typing

import torch

from revelio_jax.pipelines import hooks
from revelio_jax.steering.attachment import AttachedPoint
from revelio_jax.steering.concept import execution_device


class SteeringHook:
    """Adds the changes of all attachments at one hook point, each computed from the same activations.

    ``active`` holds the attached points that act in the current pass. It is set before the pass, outside of compiled
    code; the hook itself only reads tensors.
    """

    def __init__(self, point: hooks.HookPoint):
        self.point = point
        self.attached_points: list[AttachedPoint] = []
        self.active: tuple[AttachedPoint, ...] = ()
        self.device = execution_device(point.module)
        self.reads_difference = False
        self.grid: tuple[int, int] | None = None  # grid of the positions, for modules whose output is not a map
        self.recording: list[torch.Tensor] | None = None  # a list while the activations of each pass are recorded
        _ = point.argument  # cache it now, because compiled code cannot inspect signatures
        self.remove = hooks.after_forward(point.module, self.after)

    def add(self, attached: AttachedPoint) -> None:
        """Add the steering of an attachment."""
        self.attached_points.append(attached)
        attached.device = self.device
        self.reads_difference = any(attached.reads_difference for attached in self.attached_points)

    def discard(self, attached: AttachedPoint) -> None:
        """Remove the steering of an attachment. Without any attachment left, remove the hook itself."""
        self.attached_points.remove(attached)
        self.active = ()
        self.reads_difference = any(attached.reads_difference for attached in self.attached_points)
        if not self.attached_points:
            self.remove()

    def after(self, args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any], output: typing.Any) -> typing.Any:
        """Return ``output`` with x + change, or None if nothing is active, so that no bit changes."""
        if self.recording is not None:
            self.recording.append(self.point.read(output).float())
        if not self.active:
            return None
        x_BTD = self.point.read(output)
        if not torch.compiler.is_compiling() and self.device != x_BTD.device:
            self.device = x_BTD.device
            for attached in self.attached_points:
                attached.set_device(self.device)
        with torch.autocast(x_BTD.device.type, enabled=False):  # the SAE computes in float32
            x_BTD = x_BTD.float()
            difference_BTD = x_BTD
            if self.reads_difference:
                difference_BTD = x_BTD - self.point.read_input(args, kwargs).float()
            grid = self.point.grid(output) or self.grid
            change = 0.0
            for attached in self.active:
                change = change + attached.change(difference_BTD if attached.reads_difference else x_BTD, grid)
            return self.point.replace(output, x_BTD + change)
