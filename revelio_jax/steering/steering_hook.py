"""The hook at one hook point of a pipeline."""

import dataclasses
import threading
import typing
from collections.abc import Callable

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hooks
from revelio_jax.steering.attached_point import AttachedPoint
from revelio_jax.steering.concept import execution_device


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass of a component.

    ``branches`` has the branch of guidance of each row. ``timestep`` is between 1000 (noise) and 0 (image), and None in
    a text encoder. ``grid`` is the height and width of the output image in positions, if they are known.
    """

    branches: list[str]
    timestep: float | None = None
    grid: tuple[int, int] | None = None


OnPass = Callable[[Pass, torch.Tensor], typing.Any]
"""Called with a pass and its activations [B, T, D], float32, before they are steered."""


class SteeringHook:
    """Adds the changes of all attachments at one hook point, each computed from the same activations.

    ``active`` holds the attached points that act in the current pass. It is set before the pass, outside of compiled
    code; the hook itself only reads tensors. ``watched`` is the current pass if ``watchers`` are called in it.
    """

    def __init__(self, point: hooks.HookPoint):
        self.point = point
        self.attached_points: list[AttachedPoint] = []
        self.active: tuple[AttachedPoint, ...] = ()
        self.watchers: dict[OnPass, bool] = {}  # with whether they read output minus input
        self.watched: Pass | None = None
        self.rows: int | None = None  # rows of the current pass, if they are steered differently
        self.thread = 0  # the thread that prepared the current pass
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
        """Remove the steering of an attachment."""
        self.attached_points.remove(attached)
        self.active = ()
        self.reads_difference = any(attached.reads_difference for attached in self.attached_points)

    @property
    def is_idle(self) -> bool:
        """Return whether nothing is attached to the hook point and nothing watches it."""
        return not self.attached_points and not self.watchers

    def after(self, args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any], output: typing.Any) -> typing.Any:
        """Return ``output`` with x + change, or None if nothing is active, so that no bit changes."""
        if self.recording is not None:
            self.recording.append(self.point.read(output).float())
        if not torch.compiler.is_compiling() and self.thread != threading.get_ident():
            return None  # another thread runs a pipeline that shares the module
        if self.watched is not None:
            self._watch(self.watched, args, kwargs, output)
        if not self.active:
            return None
        x_BTD = self.point.read(output)
        if self.rows is not None and len(x_BTD) != self.rows:
            raise InputError(
                f"{self.point.name} got {len(x_BTD)} rows, but its {self.point.component} got {self.rows}; steering "
                "needs the same rows in all blocks"
            )
        if not torch.compiler.is_compiling() and self.device != x_BTD.device:
            self.device = x_BTD.device
            for attached in self.attached_points:
                attached.set_device(self.device)
        dtype = x_BTD.dtype
        with torch.autocast(x_BTD.device.type, enabled=False):  # the SAE computes in float32
            x_BTD = x_BTD.float()
            difference_BTD = x_BTD
            if self.reads_difference:
                difference_BTD = x_BTD - self.point.read_input(args, kwargs).float()
            grid = self.point.grid(output) or self.grid
            change = 0.0
            for attached in self.active:
                one = attached.change(difference_BTD if attached.reads_difference else x_BTD, grid)
                attached.measure(x_BTD, one)
                change = change + one
            steered_BTD = (x_BTD + change).to(dtype)
            for attached in self.active:
                attached.check(steered_BTD)
            return self.point.replace(output, steered_BTD)

    def _watch(
        self, current: Pass, args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any], output: typing.Any
    ) -> None:
        x_BTD = self.point.read(output).float()
        current = dataclasses.replace(current, grid=self.point.grid(output) or current.grid)
        for watcher, reads_difference in self.watchers.items():
            watcher(current, x_BTD - self.point.read_input(args, kwargs).float() if reads_difference else x_BTD)
