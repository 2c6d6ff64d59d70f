"""Concepts attached to hook points, and the tensors that the hooks read."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.families import Family
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.steering.attached_point import AttachedPoint
from revelio_jax.steering.concept import execution_device
from revelio_jax.steering.pooled import Pooled
from revelio_jax.steering.rules import Add, ChangeFunction
from revelio_jax.steering.strengths import Clamp, Key, Strength, check_strength
from revelio_jax.steering.where import Where

BRANCHES = CONDITIONAL, UNCONDITIONAL


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


class Session(typing.Protocol):
    """The steered pipeline that an attachment belongs to; see :mod:`revelio_jax.steering.session`."""

    def detach(self, attachment: "Attachment") -> None:
        """Remove the attachment from the pipeline."""
        ...

    def encoding(self, branch: str) -> contextlib.AbstractContextManager[None]:
        """Steer text encoders in the block as ``branch``."""
        ...

    def check_foreign_passes(self, attachment: "Attachment") -> None:
        """Raise InputError if only other pipelines ran the components of an attachment."""
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


@dataclasses.dataclass(frozen=True)
class PointReport:
    """Measurements of steering at one hook point since it was attached.

    ``passes``: passes of the module that were steered. ``rows``: steered rows of their batches. ``relative_change``:
    norm of the change divided by the norm of the activations, over all steered rows.
    """

    passes: int
    rows: int
    relative_change: float


class Attachment:
    """Concepts that steer the hook points of one pipeline until the block ends or :meth:`remove` is called.

    One ``owner`` cannot attach the same concept twice at a hook point. ``fingerprint`` returns a value that changes
    when the concepts must be encoded again; it is None if they never change.
    :func:`revelio_jax.steering.session.attach` sets ``session``.
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
        fingerprint: Callable[[], Hashable] | None = None,
    ):
        self.points, self.concepts, self.owner = tuple(points), dict(concepts), owner
        self.reads_difference = reads_difference
        self.where = where.validate(points, family)
        self.session: Session | None = None
        self._device = execution_device(self.points[0].module)
        self._tokens: int | None = None
        self._read_fingerprint = fingerprint
        self._fingerprint = fingerprint() if fingerprint else None
        self.functions = self._make_functions()
        # Hook points that share one SAE have one code, computed from the activations of all of them.
        self.is_joint = len(self.points) > 1 and not all(
            isinstance(function, Add) for function in self.functions.values()
        )
        vector = family.pooled
        hooks_pooled = vector is not None and any(point.component == vector.component for point in self.points)
        self.keeps_plain_pooled = self.where.pooled is False and hooks_pooled
        self._adds_pooled = bool(self.where.pooled) and not hooks_pooled
        self._pooled = self._make_pooled()
        self.attached_points = [AttachedPoint(self, point, i) for i, point in enumerate(self.points)]

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        session, acted = self.session, any(attached.passes for attached in self.attached_points)
        self.remove()
        if session is not None and error is None and not acted and any(map(self.weights, BRANCHES)):
            session.check_foreign_passes(self)

    @property
    def strengths(self) -> dict[Key, Strength]:
        """Return the strength of each concept."""
        return {key: concept.strength for key, concept in self.concepts.items()}

    def remove(self) -> None:
        """Detach from the pipeline and restore it. Calling this method again has no effect."""
        if self.session is not None:
            self.session.detach(self)
            self.session = None

    def encoding(self, branch: str) -> contextlib.AbstractContextManager[None]:
        """Steer the text encoders in the block as ``branch``, "conditional" or "unconditional".

        For prompts that are encoded outside of the pipeline, for example by compel. The call of the pipeline accepts
        embeddings that were computed in the block, until a strength changes.

        Raise InputError if the branch is unknown or nothing is attached any more, and after the block if no text
        encoder ran.
        """
        if branch not in BRANCHES:
            raise InputError(f"branch is {branch!r}; allowed: {', '.join(BRANCHES)}")
        if self.session is None:
            raise InputError("encoding needs attached concepts, but they were removed")
        if hook_points.is_denoiser_point(self.points[0].name):
            raise InputError(f"encoding steers text encoders, but {self.points[0].name} is in the denoiser")
        if self.is_joint:
            raise InputError(
                f"{'+'.join(point.name for point in self.points)} have one code for both encoders, which needs "
                "pipe.encode_prompt; call it inside of the attached block instead"
            )
        return self.session.encoding(branch)

    def report(self) -> dict[str, PointReport]:
        """Return for each hook point how many passes and rows were steered since it was attached, and how strongly."""
        reports: dict[str, PointReport] = {}
        for attached in self.attached_points:
            attached.settle()
            relative = math.sqrt(attached.changes / attached.activations) if attached.activations else 0.0
            reports[attached.point.name] = PointReport(attached.passes, attached.steered_rows, relative)
        return reports

    def set_strength(self, concept: Key, strength: Strength) -> None:
        """Change a strength; it takes effect with the next prompt that is encoded, or with the next denoising step.

        Raise InputError if the concept is not attached, or if the strength is not valid.
        """
        if self.session is None:
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

    def refresh(self) -> None:
        """Encode the concepts again if the weights, the adapters or the vocabulary of the pipeline changed.

        At hook points of the denoiser this samples images, so call it before a call of the pipeline, not during one.
        """
        if self._read_fingerprint is None or not (self.weights(CONDITIONAL) or self.weights(UNCONDITIONAL)):
            return
        fingerprint = self._read_fingerprint()
        if fingerprint != self._fingerprint:
            self._remake(self._device, self._tokens)
            self._pooled = self._make_pooled()
            self._fingerprint = fingerprint

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
        self.refresh()
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

    def _make_pooled(self) -> list[Pooled]:
        return [_pooled(key, concept.source) for key, concept in self.concepts.items()] if self._adds_pooled else []

    def _remake(self, device: torch.device, tokens: int | None) -> None:
        self._device, self._tokens = device, tokens
        self.functions = self._make_functions()
        for attached in self.attached_points:
            attached.take_functions()

    def _fits(self, tokens: int) -> bool:
        vectors = [getattr(function, "v_TD", None) for function in self.functions.values()]
        return all(v_TD is None or len(v_TD) in (1, tokens) for v_TD in vectors)


def _pooled(key: Key, source: ConceptSource) -> Pooled:
    pooled = source.pooled()
    if pooled is None:
        raise InputError(f"pooled is True, but {str(key)!r} has no pooled vector; use a text")
    return pooled
