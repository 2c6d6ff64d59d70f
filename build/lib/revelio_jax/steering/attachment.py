"""Steering in force on one pipeline: what is changed, where, when and how strongly."""

import dataclasses
import math
import numbers
import typing
from collections.abc import Callable, Collection, Mapping

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points, tokens
from revelio_jax.pipelines.guidance import CONDITIONAL
from revelio_jax.steering.concept import execution_device
from revelio_jax.steering.pooled import POOLED, Pooled
from revelio_jax.steering.rules import Add, Change
from revelio_jax.steering.session import Session


@dataclasses.dataclass(frozen=True)
class Clamp:
    """A strength of a latent: it is set to ``value``, in its own units, wherever it is steered."""

    value: float


Strength = float | Clamp
Key = typing.Hashable
"""What names a concept: its text, a latent's number, a file, or the concept itself."""
Make = Callable[[Mapping[Key, Strength], torch.device | None, int | None], dict[Key, Change]]
"""Strengths, device and number of tokens of the prompts to the change of each concept; None: as it comes."""


@dataclasses.dataclass(frozen=True)
class Where:
    """What steering is limited to; see :meth:`Steerer.attach`."""

    positions: str | torch.Tensor = "all"
    steps: tuple[float, float] | None = None
    ramp: tuple[float, float] = (1.0, 1.0)
    mask: torch.Tensor | None = None
    pooled: bool | None = None

    def checked(self, hooked: tuple[hook_points.HookPoint, ...], layout: str) -> "Where":
        """With tensors made of what was given. Raises InputError where a limit has no meaning here."""
        positions, mask, name = self.positions, self.mask, "+".join(site.name for site in hooked)
        in_denoiser = hook_points.is_denoiser_site(name)
        if isinstance(positions, str):
            if positions not in tokens.KEPT:
                raise InputError(f"positions is {positions!r}; allowed: {', '.join(tokens.KEPT)}, or a bool mask [T]")
            if in_denoiser and positions != "all":
                raise InputError(
                    f"positions is {positions!r}, but {name} does not see tokens; allowed there: all, or a "
                    "bool mask [positions]"
                )
        else:
            positions = torch.as_tensor(positions)
            if positions.dtype != torch.bool or positions.ndim != 1:
                raise InputError(f"positions is {positions.dtype} {list(positions.shape)}; a mask must be bool [T]")
        if not in_denoiser and (self.steps is not None or self.ramp != (1.0, 1.0)):
            raise InputError(f"steps and ramp are for sites of the denoiser; {name} runs before all steps")
        if self.steps is not None and not self.steps[0] >= self.steps[1]:
            raise InputError(
                f"steps is {self.steps}; it must be (first, last), timesteps that fall, such as (1000, 600)"
            )
        if mask is not None:
            mask = torch.as_tensor(mask, dtype=torch.float32)
            if not in_denoiser or name.endswith(".text"):
                raise InputError(f"mask is spatial, and {name} has no picture; attach to a site that has one")
            if mask.ndim != 2 or not ((mask >= 0) & (mask <= 1)).all():
                raise InputError(f"mask is {list(mask.shape)}; it must be [height, width], values in 0 .. 1")
        if self.pooled is not None:
            component = POOLED.get(layout, ("",))[0]
            hooks_it = any(site.component == component for site in hooked)
            if in_denoiser or not component:
                raise InputError(f"pooled is {self.pooled}, but {name} has no pooled vector beside it")
            if layout == "flux" and hooks_it:
                raise InputError(f"pooled is {self.pooled}, but of {name} FLUX reads only the pooled vector")
        return dataclasses.replace(self, positions=positions, mask=mask)


class Attachment:
    """Steering in force: a context manager; outside of one, call :meth:`remove` at the end."""

    def __init__(
        self,
        session: Session,
        owner: typing.Any,
        hooked: tuple[hook_points.HookPoint, ...],
        make: Make,
        strengths: Mapping[Key, Strength],
        on_negative: Collection[Key],
        where: Where,
        reads_input: bool = False,
        make_pooled: Callable[[Key], Pooled] | None = None,
    ):
        self._session: Session | None = session
        self.owner, self.sites = owner, hooked
        self.strengths = {key: checked_strength(key, strength) for key, strength in strengths.items()}
        self.on_negative = frozenset(on_negative)  # steered on the negative prompt too, the other way
        self.reads_input = reads_input
        self._where = where.checked(hooked, session.layout)
        self.positions, self.mask = self._where.positions, self._where.mask
        self._make = make
        self._refuse_twice(session)
        self._device = execution_device(hooked[0].module)
        self.changes = make(self.strengths, self._device, None)
        joint = len(hooked) > 1 and not all(isinstance(c, Add) for c in self.changes.values())
        self.is_joint = joint
        component = POOLED.get(session.layout, ("",))[0]
        natural = any(site.component == component for site in hooked)
        self.leaves_pooled = self._where.pooled is False and natural
        self._pooled: dict[Key, Pooled] = {}
        if self._where.pooled and not natural:
            self._pooled = {key: make_pooled(key) for key in strengths}
        self.parts = [HookPointPart(self, site, i) for i, site in enumerate(hooked)]
        self._tokens: int | None = None
        session.add(self)

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Leave the pipeline as it was. Safe to call again."""
        if self._session is not None:
            self._session.discard(self)
            self._session = None

    def set_strength(self, concept: Key, strength: Strength) -> None:
        """Change a strength between pictures."""
        if self._session is None:
            raise InputError(f"{concept!r} is no longer attached: its block has ended, or it was removed")
        if concept not in self.strengths:
            raise InputError(f"{concept!r} is not attached; attached: {', '.join(map(str, self.strengths))}")
        strength = checked_strength(concept, strength)
        before, self.strengths[concept] = self.strengths[concept], strength
        if isinstance(before, Clamp) or isinstance(strength, Clamp):
            self._rebuild(self._device, self._tokens)

    # What the session asks

    def weights(self, branch: str) -> list[float]:
        """The strengths on a branch of guidance, in order; [] where it is left as it is."""
        weights = []
        for key, strength in self.strengths.items():
            sign = 1 if branch == CONDITIONAL else -1 if key in self.on_negative else 0
            weights.append(sign * (1.0 if isinstance(strength, Clamp) else strength))
        return weights if any(weights) else []

    @property
    def follows_steps(self) -> bool:
        return self._where.steps is not None or self._where.ramp != (1.0, 1.0)

    def factor(self, timestep: float) -> float:
        """What strengths are multiplied by at a timestep, 1000 for noise alone and 0 for the picture."""
        first, last = self._where.steps or (1000.0, 0.0)
        if not last <= timestep <= first:
            return 0.0
        done = (first - timestep) / max(first - last, 1e-9)
        start, end = self._where.ramp
        return start + (end - start) * done

    def compute(self, caught: list[torch.Tensor], branch: str) -> None:
        """The change of joined sites from their activations [B, T, d], each part's own share."""
        device = caught[0].device
        self.place(device)
        self.prepare(caught[0].shape[1])
        x_BTD = torch.cat([x.to(device) for x in caught], dim=-1)
        change = 0.0
        for made, weight in zip(self.changes.values(), self.weights(branch), strict=True):
            change = change + made(x_BTD, weight)
        for part, share in zip(self.parts, change.split([site.d for site in self.sites], -1), strict=True):
            part.share = share

    def forget(self) -> None:
        """Let go of what :meth:`compute` made: it is for one pass."""
        for part in self.parts:
            part.share = None

    def prepare(self, length: int | None) -> None:
        """Make the changes for prompts of ``length`` tokens."""
        if length is not None and length != self._tokens:
            if self._tokens is not None or not self._fits(length):
                self._rebuild(self._device, length)
            self._tokens = length

    def place(self, device: torch.device) -> None:
        """Bring the changes to the device that the activations turn out to be on."""
        if device != self._device:
            self._rebuild(device, self._tokens)

    def steer_pooled(self, pooled_BD: torch.Tensor, branch: str) -> torch.Tensor:
        """The pooled vector of ``branch`` with its own part of the concepts."""
        changed = pooled_BD.float()
        for weight, pooled in zip(self.weights(branch), self._pooled.values(), strict=False):
            changed = changed + pooled.change(pooled_BD.float(), weight)
        return changed.to(pooled_BD.dtype) if self._pooled else pooled_BD

    def _fits(self, length: int) -> bool:
        vectors = [getattr(change, "v_TD", None) for change in self.changes.values()]
        return all(v_TD is None or len(v_TD) in (1, length) for v_TD in vectors)

    def _rebuild(self, device: torch.device, length: int | None) -> None:
        self._device = device
        self.changes = self._make(self.strengths, device, length)
        for part in self.parts:
            part.distribute()

    def _refuse_twice(self, session: Session) -> None:
        for other in session.attachments:
            same_site = {site.name for site in other.sites} & {site.name for site in self.sites}
            for key in self.strengths:
                if other.owner is self.owner and same_site and key in other.strengths:
                    raise InputError(
                        f"{key!r} is attached already, at {min(same_site)}; change it with set_strength, or "
                        "remove() that attachment first"
                    )


class HookPointPart:
    """An attachment at one of its sites. Its tensors are written before each pass and read by the hook."""

    def __init__(self, attachment: Attachment, site: hook_points.HookPoint, index: int):
        self.attachment, self.site, self._index = attachment, site, index
        self.reads_input = attachment.reads_input
        self.device = torch.device("cpu")
        self.weights: list[torch.Tensor] = []
        self.share: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None
        self.mask = attachment.mask
        self._written: tuple[torch.device, list] | None = None
        self.distribute()

    def distribute(self) -> None:
        """Take the part of each change that is for this site."""
        widths = [site.d for site in self.attachment.sites]
        changes = list(self.attachment.changes.values())
        if len(widths) > 1 and not self.attachment.is_joint:
            changes = [change.split(widths)[self._index] for change in changes]
        self.changes = [] if self.attachment.is_joint else changes

    def change(self, x_BTD: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
        """What is added to the activations [B, T, D], of which ``grid`` are height and width."""
        if self.attachment.is_joint:
            change = self.share.to(x_BTD.device)
        else:
            change = 0.0
            for made, weight in zip(self.changes, self.weights, strict=True):
                change = change + made(x_BTD, weight.to(x_BTD.device))
        if self.positions is not None:
            change = torch.where(self.positions.to(x_BTD.device), change, 0.0)
        if self.mask is not None:
            area = torch.nn.functional.interpolate(self.mask[None, None], size=grid, mode="area")
            change = change * area.reshape(1, -1, 1).to(x_BTD.device)
        return change

    # Before a pass

    @property
    def is_idle(self) -> bool:
        return self.attachment.is_joint and self.share is None

    def prepare(self, length: int | None) -> None:
        self.attachment.prepare(length)

    def place(self, device: torch.device) -> None:
        """The device that the activations turn out to be on; joined sites may be on several."""
        self.device = device
        if not self.attachment.is_joint:
            self.attachment.place(device)

    def set_weights(self, numbers: list[tuple[float, ...]]) -> None:
        """A weight for each concept and row of the batch; one for all rows where all are the same."""
        numbers = [each[:1] if len(set(each)) == 1 else each for each in numbers]
        if (self.device, numbers) != self._written:
            self._written = self.device, numbers
            self.weights = [
                torch.tensor(each, dtype=torch.float32, device=self.device)[:, None, None] for each in numbers
            ]

    def set_where(self, positions: torch.Tensor | None) -> None:
        self.positions = positions if positions is None else positions.to(self.device)


def checked_strength(concept: Key, strength: Strength) -> Strength:
    """The strength as float or Clamp of one, whatever kind of number it was. Raises InputError."""
    number = strength.value if isinstance(strength, Clamp) else strength
    if isinstance(strength, Clamp) and not isinstance(concept, int):
        raise InputError(f"strength of {concept!r} is {strength}; Clamp is for a latent, by its number")
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not math.isfinite(number):
        raise InputError(f"strength of {concept!r} is {strength!r}; it must be a finite number")
    return Clamp(float(number)) if isinstance(strength, Clamp) else float(number)
