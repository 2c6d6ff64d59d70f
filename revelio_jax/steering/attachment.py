"""Concepts attached to hook points, and the tensors that the hooks read."""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import Family
from revelio_jax.pipelines.guidance import CONDITIONAL
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.steering.concept import execution_device
from revelio_jax.steering.pooled import Pooled
from revelio_jax.steering.rules import Add, ChangeFunction
from revelio_jax.steering.strengths import Clamp, Key, Strength, check_strength
from revelio_jax.steering.where import Where


class ConceptSource(typing.Protocol):
    """The source of a concept: a text, a latent, saved vectors or a function of the activations."""

    def change_function(self, strength: Strength, device: torch.device | None, tokens: int | None) -> ChangeFunction:
        """Return the function that changes activations for prompts of ``tokens`` tokens, on ``device``.

        None means the pipeline's own prompt length or device.
        """
        ...

    def pooled(self) -> Pooled | None:
        """Return the concept in the pooled vector, or None if the source has no pooled vector."""
        ...


@dataclasses.dataclass(frozen=True)
class AttachedConcept:
    """One concept of an attachment. ``on_negative``: also steer the unconditional branch, in the opposite direction."""

    source: ConceptSource
    strength: Strength
    on_negative: bool

    def weight(self, branch: str) -> float:
        """Return the factor on the change for a branch of guidance; the change by a Clamp contains its value."""
        sign = 1 if branch == CONDITIONAL else -1 if self.on_negative else 0
        return sign * (1.0 if isinstance(self.strength, Clamp) else self.strength)


class Attachment:
    """Concepts that steer the hook points of one pipeline until the block ends or :meth:`remove` is called.

    One ``owner`` cannot attach the same concept twice at a hook point. :func:`revelio_jax.steering.session.attach` sets
    ``detach``.
    """

    def __init__(
        self,
        points: Sequence[HookPoint],
        concepts: Mapping[Key, AttachedConcept],
        where: Where,
        family: Family,
        *,
        owner: object,
        reads_difference: bool = False,
    ):
        self.points, self.concepts, self.owner = tuple(points), dict(concepts), owner
        self.reads_difference = reads_difference
        self.where = where.validate(points, family)
        self.detach: Callable[[], None] | None = None
        self._device = execution_device(self.points[0].module)
        self._tokens: int | None = None
        self.functions = self._make_functions()
        # Hook points that share one SAE have one code, computed from the activations of all of them.
        self.is_joint = len(self.points) > 1 and not all(
            isinstance(function, Add) for function in self.functions.values()
        )
        vector = family.pooled
        hooks_pooled = vector is not None and any(point.component == vector.component for point in self.points)
        self.keeps_plain_pooled = self.where.pooled is False and hooks_pooled
        self._pooled: list[Pooled] = []
        if self.where.pooled and not hooks_pooled:
            self._pooled = [_pooled(key, concept.source) for key, concept in self.concepts.items()]
        self.attached_points = [AttachedPoint(self, point, i) for i, point in enumerate(self.points)]

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    @property
    def strengths(self) -> dict[Key, Strength]:
        """Return the strength of each concept."""
        return {key: concept.strength for key, concept in self.concepts.items()}

    def remove(self) -> None:
        """Detach from the pipeline and restore it. Calling this method again has no effect."""
        if self.detach is not None:
            self.detach()
            self.detach = None

    def set_strength(self, concept: Key, strength: Strength) -> None:
        """Change a strength; it takes effect with the next image.

        Raise InputError if the concept is not attached, or if the strength is not valid.
        """
        if self.detach is None:
            raise InputError(f"{concept!r} is no longer attached: its block has ended, or it was removed")
        if concept not in self.concepts:
            raise InputError(f"{concept!r} is not attached; attached: {', '.join(map(str, self.concepts))}")
        strength = check_strength(concept, strength)
        previous = self.concepts[concept]
        self.concepts[concept] = dataclasses.replace(previous, strength=strength)
        if isinstance(previous.strength, Clamp) or isinstance(strength, Clamp):
            self._remake(self._device, self._tokens)

    def weights(self, branch: str) -> list[float]:
        """Return the weight of each concept on a branch of guidance, or [] if all are 0."""
        weights = [concept.weight(branch) for concept in self.concepts.values()]
        return weights if any(weights) else []

    # Functions that change activations

    def set_tokens(self, tokens: int) -> None:
        """Recompute the functions for prompts of ``tokens`` tokens, if the length is new."""
        if tokens != self._tokens:
            if self._tokens is not None or not self._fits(tokens):
                self._remake(self._device, tokens)
            self._tokens = tokens

    def set_device(self, device: torch.device) -> None:
        """Recompute the functions on the device of the activations, if it is new."""
        if device != self._device:
            self._remake(device, self._tokens)

    def compute_shares(self, activations: list[torch.Tensor], branch: str) -> None:
        """Compute the change of joined hook points from all their activations [B, T, d]; store the share of each."""
        device = activations[0].device
        self.set_device(device)
        self.set_tokens(activations[0].shape[1])
        x_BTD = torch.cat([x.to(device) for x in activations], dim=-1)
        total: typing.Any = 0.0
        for function, weight in zip(self.functions.values(), self.weights(branch), strict=True):
            total = total + function(x_BTD, weight)
        for attached, share in zip(
            self.attached_points, total.split([point.d for point in self.points], -1), strict=True
        ):
            attached.share = share

    def forget_shares(self) -> None:
        """Drop the shares, which are valid for one pass."""
        for attached in self.attached_points:
            attached.share = None

    def steer_pooled(self, pooled_BD: torch.Tensor, branch: str) -> torch.Tensor:
        """Return pooled vectors [B, D] of a branch with the concepts' own pooled vectors added, in the same dtype."""
        if not self._pooled:
            return pooled_BD
        steered = pooled_BD.float()
        for weight, pooled in zip(self.weights(branch), self._pooled, strict=True):
            steered = steered + pooled.change(pooled_BD.float(), weight)
        return steered.to(pooled_BD.dtype)

    def _make_functions(self) -> dict[Key, ChangeFunction]:
        return {
            key: concept.source.change_function(concept.strength, self._device, self._tokens)
            for key, concept in self.concepts.items()
        }

    def _remake(self, device: torch.device, tokens: int | None) -> None:
        self._device, self._tokens = device, tokens
        self.functions = self._make_functions()
        for attached in self.attached_points:
            attached.take_functions()

    def _fits(self, tokens: int) -> bool:
        vectors = [getattr(function, "v_TD", None) for function in self.functions.values()]
        return all(v_TD is None or len(v_TD) in (1, tokens) for v_TD in vectors)


class AttachedPoint:
    """One hook point of an attachment. Its tensors are set before each pass, and the hook reads them."""

    def __init__(self, attachment: Attachment, point: HookPoint, index: int):
        self.attachment, self.point, self._index = attachment, point, index
        self.reads_difference = attachment.reads_difference
        self.device = torch.device("cpu")
        self.functions: list[ChangeFunction] = []
        self.weights: list[torch.Tensor] = []
        self.share: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None
        self.mask = attachment.where.mask
        self._written: tuple[torch.device, list[tuple[float, ...]]] | None = None
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
            area = torch.nn.functional.interpolate(self.mask[None, None], size=grid, mode="area")
            change = change * area.reshape(1, -1, 1).to(x_BTD.device)
        return change

    # Before a pass

    @property
    def is_idle(self) -> bool:
        """Return whether this is a joined hook point without a share in this pass."""
        return self.attachment.is_joint and self.share is None

    def set_device(self, device: torch.device) -> None:
        """Set the device of the activations; joined hook points may be on several devices."""
        self.device = device
        if not self.attachment.is_joint:
            self.attachment.set_device(device)

    def set_weights(self, weights: list[tuple[float, ...]]) -> None:
        """Set the weights of each concept: one per row of the batch, or a single one if all are equal."""
        weights = [each[:1] if len(set(each)) == 1 else each for each in weights]
        if (self.device, weights) != self._written:
            self._written = self.device, weights
            self.weights = [
                torch.tensor(each, dtype=torch.float32, device=self.device)[:, None, None] for each in weights
            ]

    def set_positions(self, positions: torch.Tensor | None) -> None:
        """Set the positions to steer, bool [B or 1, T, 1]; None steers all."""
        self.positions = positions if positions is None else positions.to(self.device)


def _pooled(key: Key, source: ConceptSource) -> Pooled:
    pooled = source.pooled()
    if pooled is None:
        raise InputError(f"pooled is True, but {str(key)!r} has no pooled vector; use a text")
    return pooled
