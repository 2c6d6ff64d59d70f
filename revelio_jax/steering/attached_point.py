"""One hook point of an attachment: the tensors that its hook reads, and what the hook measures."""

import math
import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.steering.rules import Add, ChangeFunction

if typing.TYPE_CHECKING:
    from revelio_jax.steering.attachment import Attachment


class AttachedPoint:
    """One hook point of an attachment. Its tensors are set before each pass, and the hook reads them."""

    def __init__(self, attachment: "Attachment", point: HookPoint, index: int):
        self.attachment, self.point, self._index = attachment, point, index
        self.reads_difference = attachment.reads_difference
        self.device = torch.device("cpu")
        self.functions: list[ChangeFunction] = []
        self.weights: list[torch.Tensor] = []
        self.share: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None
        self.mask = attachment.where.mask
        # What happened since the last `settle`, added up on the device without waiting for it: passes, squared norms
        # of the activations and of the change, and NaN once a steered activation is not finite.
        with torch.inference_mode(False):  # so that it can be changed in any mode
            self._measured = torch.zeros(4)
        self._is_steered = torch.zeros(1)
        self.prepared, self.prepared_branches = 0, set[str]()
        self.passes, self.steered_rows, self.activations, self.changes, self.is_finite = 0, 0, 0.0, 0.0, True
        self.was_finite = True  # before steering
        self._written: tuple[torch.device, list[tuple[float, ...]], list[float]] | None = None
        self.take_functions()

    def take_functions(self) -> None:
        """Take the functions of the attachment, each limited to the columns of this hook point."""
        if self.attachment.is_joint:
            return
        self.functions = list(self.attachment.functions.values())
        widths = [point.d for point in self.attachment.points]
        if len(widths) > 1:
            self.functions = [typing.cast("Add", function).split(widths)[self._index] for function in self.functions]

    def change(self, x_BTD: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
        """Return the change of the activations; ``grid`` is the height and width of their positions."""
        if self.attachment.is_joint:
            share: typing.Any = self.share
            change = share.to(x_BTD.device)
        else:
            change: typing.Any = 0.0
            for function, weight in zip(self.functions, self.weights, strict=True):
                change = change + function(x_BTD, weight.to(x_BTD.device))
        if self.positions is not None:
            change = torch.where(self.positions.to(x_BTD.device), change, 0.0)
        if self.mask is not None:
            area = torch.nn.functional.interpolate(self.mask[None, None], size=grid, mode="area").flatten()
            if len(area) > x_BTD.shape[1]:
                raise InputError(f"mask needs {len(area)} positions, but {self.point.name} has {x_BTD.shape[1]}")
            # Positions after those of the output image belong to reference images.
            area = torch.nn.functional.pad(area, (0, x_BTD.shape[1] - len(area)), value=1.0)
            change = change * area[None, :, None].to(x_BTD.device)
        return change

    def measure(self, x_BTD: torch.Tensor, change_BTD: torch.Tensor) -> None:
        """Add a pass to the measurements, on the device. A vector's change is broadcast."""
        with torch.no_grad():
            activations = (x_BTD.square().sum((1, 2)) * self._is_steered).sum()
            one, zero = activations.new_ones(()), activations.new_zeros(())
            self._measured += torch.stack([one, activations, change_BTD.expand_as(x_BTD).square().sum(), zero])

    def check(self, steered_BTD: torch.Tensor) -> None:
        """Note on the device if steering made activations infinite for the first time, in the dtype of the model."""
        with torch.no_grad():
            flaw = steered_BTD.sum(dtype=torch.float32) * 0.0
            self._measured[3] += torch.where(self._measured[1].isfinite(), flaw, 0.0)

    def settle(self) -> None:
        """Wait for the device, and move the measurements to ``passes`` and the other totals."""
        passes, activations, changes, nan = self._measured.tolist()
        with torch.no_grad():
            self._measured.zero_()
        self.passes += int(passes)
        self.was_finite, self.is_finite = math.isfinite(activations), nan == 0.0
        self.activations += activations if self.was_finite else 0.0
        self.changes += changes if self.is_finite else 0.0

    # Before a pass

    @property
    def is_idle(self) -> bool:
        """Return whether this is a joined hook point without a share in this pass."""
        return self.attachment.is_joint and self.share is None

    def set_device(self, device: torch.device) -> None:
        """Set the device of the activations; joined hook points may be on several devices."""
        self.device = device
        with torch.inference_mode(False):
            self._measured = self._measured.to(device, copy=True)
        self._is_steered = self._is_steered.to(device)
        if not self.attachment.is_joint:
            self.attachment.set_device(device)

    def set_weights(self, weights: list[tuple[float, ...]]) -> None:
        """Set the weights of each concept: one per row of the batch, or a single one if all are equal."""
        steered = [float(any(row)) for row in zip(*weights, strict=True)]
        self.prepared += 1
        self.steered_rows += int(sum(steered))
        steered = steered[:1] if len(set(steered)) == 1 else steered
        weights = [each[:1] if len(set(each)) == 1 else each for each in weights]
        if (self.device, weights, steered) != self._written:
            self._written = self.device, weights, steered
            with torch.inference_mode(False):
                self._measured = self._measured.to(self.device, copy=True)
            self._is_steered = torch.tensor(steered, device=self.device)
            self.weights = [
                torch.tensor(each, dtype=torch.float32, device=self.device)[:, None, None] for each in weights
            ]

    def set_positions(self, positions: torch.Tensor | None) -> None:
        """Set the positions to steer, bool [B or 1, T, 1]; None steers all."""
        self.positions = positions if positions is None else positions.to(self.device)
