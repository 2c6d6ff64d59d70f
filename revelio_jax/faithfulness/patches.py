"""Replace the activations of hook points: by a reconstruction, by means, by zeros, or by those of another prompt.

B rows, T positions, D width. A patch maps activations to the activations that replace them.
"""

import contextlib
import dataclasses
import inspect
import typing
from collections.abc import Callable, Generator, Sequence

import torch

from revelio_jax.faithfulness.means import ActivationMeans
from revelio_jax.pipelines import hooks
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.steering import session
from revelio_jax.steering.attachment import AttachedConcept, Attachment
from revelio_jax.steering.rules import Weight
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.sources import FunctionSource
from revelio_jax.steering.where import Where

Patch = Callable[[torch.Tensor], torch.Tensor]
"""Maps activations [B, T, D], float32, to the activations that replace them, of the same shape or broadcast to it."""


@dataclasses.dataclass
class Clock:
    """The timestep of the denoiser's current pass, between 1000 (noise) and 0 (image); None before the first pass.

    ``replaced`` counts the passes in which a patch acted.
    """

    timestep: float | None = None
    replaced: int = 0


@contextlib.contextmanager
def running_clock(pipe: typing.Any) -> Generator[Clock]:
    """Yield a clock that follows the passes of the pipeline's denoiser in the block."""
    family = family_of(pipe)
    denoiser = family.denoiser_of(pipe)
    signature = inspect.signature(getattr(denoiser, "_orig_mod", denoiser).forward)
    clock = Clock()

    def read(args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any]) -> None:
        timestep = signature.bind(*args, **kwargs).arguments["timestep"]
        clock.timestep = float(torch.as_tensor(timestep).flatten()[0]) * family.timestep_scale

    remove = hooks.before_forward(denoiser, read)
    try:
        yield clock
    finally:
        remove()


def is_trained(timestep: float | None, trained: Sequence[int], scale: int) -> bool:
    """Return whether a pass at ``timestep`` belongs to the timesteps ``trained``; an empty sequence means all.

    ``scale`` is the family's ``timestep_scale``. If it is not 1, half precision rounds the timestep of a pass.
    """
    if timestep is None or not trained:
        return True
    tolerance = 0.5 if scale == 1 else 0.5 + 0.004 * timestep
    return any(abs(timestep - each) <= tolerance for each in trained)


@dataclasses.dataclass(frozen=True)
class Replacement:
    """A change function (see :mod:`revelio_jax.steering.rules`) that replaces activations by those of ``patch``.

    Passes at other timesteps than ``timesteps`` are not changed; an empty sequence means all.
    """

    patch: Patch
    clock: Clock
    timesteps: tuple[int, ...] = ()
    scale: int = 1

    def __call__(self, x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        if not is_trained(self.clock.timestep, self.timesteps, self.scale):
            return torch.zeros_like(x_BTD)
        self.clock.replaced += 1
        return weight * (self.patch(x_BTD) - x_BTD)


def attach(
    pipe: typing.Any,
    points: Sequence[HookPoint],
    replacement: Replacement,
    *,
    positions: str | torch.Tensor = "all",
    difference: bool = False,
) -> Attachment:
    """Replace the conditional rows of ``points`` in calls of ``pipe``, and in its ``encode_prompt``, in the block.

    Hook points of several text encoders share one patch of their joined widths. ``positions`` are as in
    :class:`revelio_jax.steering.where.Where`. With ``difference``, the patch reads and replaces the output minus the
    input of the module. Raise InputError if ``positions`` does not fit the hook points.
    """
    concept = AttachedConcept(FunctionSource(replacement), 1.0, on_negative=False)
    owner = object()  # each patch is an owner of its own, so that patches of several hook points can be combined
    attachment = Attachment(
        points,
        {"patch": concept},
        Where(positions=positions),
        family_of(pipe),
        owner=owner,
        reads_difference=difference,
    )
    return session.attach(pipe, attachment)


@contextlib.contextmanager
def patched_passes(point: HookPoint, replacement: Replacement, difference: bool) -> Generator[None]:
    """Replace all rows of a hook point of the denoiser in passes that the caller runs, outside of a pipeline's call."""

    def after(args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any], output: typing.Any) -> typing.Any:
        x_BTD = point.read(output).float()
        value = x_BTD - point.read_input(args, kwargs).float() if difference else x_BTD
        return point.replace(output, x_BTD + replacement(value, 1.0))

    remove = hooks.after_forward(point.module, after)
    try:
        yield
    finally:
        remove()


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Replaces rows by an SAE's reconstruction."""

    sae: Sae

    def __call__(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.sae.to(x_BTD.device).reconstruct(x_BTD)


@dataclasses.dataclass(frozen=True)
class Mean:
    """Replaces every row by one mean [D]."""

    mean_D: torch.Tensor

    def __call__(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.mean_D.to(x_BTD.device).expand_as(x_BTD)


@dataclasses.dataclass(frozen=True)
class PositionMean:
    """Replaces every row by the mean of its position, at the timestep of the pass in a denoiser."""

    means: ActivationMeans
    clock: Clock

    def __call__(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.means.at(self.clock.timestep).to(x_BTD.device).expand_as(x_BTD)


def zeros(x_BTD: torch.Tensor) -> torch.Tensor:
    """Replace rows by zeros."""
    return torch.zeros_like(x_BTD)


@dataclasses.dataclass
class Interchange:
    """Replaces the activations of the first half of a batch of ``prompts`` prompts by those of the second half.

    A batch [A1 .. An, B1 .. Bn] becomes [B1 .. Bn, B1 .. Bn], position by position. With guidance, a batch of the
    denoiser has a group of ``prompts`` rows for each branch; each group is replaced by
    itself. Source: interchange interventions, Geiger et al. (2021), arXiv 2106.02997.
    """

    prompts: int = 0

    def __call__(self, x_BTD: torch.Tensor) -> torch.Tensor:
        half = self.prompts // 2
        return torch.cat([group[half:].repeat(2, 1, 1) for group in x_BTD.split(self.prompts)])
