"""The steerer: an exported SAE as a control on a diffusers pipeline."""

import dataclasses
import functools
import math
import pathlib
import typing
import warnings
import weakref
from collections.abc import Mapping

import torch

from revelio_jax import sites
from revelio_jax.errors import InputError
from revelio_jax.steering import branches, hub, prompted
from revelio_jax.steering.concept import Concept, encode_concept
from revelio_jax.steering.folder import Sae, load_sae
from revelio_jax.steering.learned import Learned
from revelio_jax.steering.rules import ON_BOTH_BRANCHES, Change, change_of


class Steerer:
    """Adds or removes concepts while a pipeline samples.

    >>> steerer = Steerer.from_pretrained("runs/mini_sd/export")
    >>> with steerer.attach(pipe, {"glossy 3d": -1.0}):
    ...     pipe("a glossy 3d emoji of a red apple")
    """

    def __init__(self, sae: Sae):
        self.sae = sae
        # Per text encoder; an encoder that is no longer used takes its concepts along.
        self._concepts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | pathlib.Path,
        *,
        site: str | None = None,
        revision: str | None = None,
        subfolder: str = "",
        token: str | None = None,
    ) -> "Steerer":
        """Load an SAE from a folder or the hub: this project's, SAELens's (6) or sparsify's.

        ``folder`` is a path or ``owner/name``. ``site`` is the hook point, as ``clip.layer.9``, where the
        folder does not say it. ``subfolder`` is one of several in it, ``revision`` and ``token`` are the
        hub's. Only JSON and safetensors are opened. Raises InputError with what is wrong.
        """
        return cls(load_sae(hub.find(folder, revision, subfolder, token), site))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        licence: str = "unknown",
        token: str | None = None,
    ) -> str:
        """Publish the SAE with a model card as ``owner/name``; returns the commit's address.

        ``licence`` is written into the card, as the hub spells it (``mit``, ``cc-by-4.0``).
        """
        return hub.push(self.sae, repo_id, private=private, licence=licence, token=token)

    def latents_for(self, pipe: typing.Any, text: str, top: int = 20) -> list[dict[str, typing.Any]]:
        """The ``top`` latents that ``text`` uses most beyond the empty prompt, strongest first.

        Rows are {latent, value, empty, position, token}: its largest value on the prompt and on the
        empty one, and where in the prompt that is.
        """
        return prompted.latents_for(pipe, self.site, self.placed(pipe), text, top)

    @property
    def site(self) -> str:
        """The hook point that the SAE was trained on."""
        return self.sae.metadata["site"]

    def concept(self, pipe: typing.Any, text: str, learned: Learned | None = None) -> Concept:
        """The concept in latents; encoded at the first call, then kept."""
        kept = self._concepts.setdefault(pipe.text_encoder, {})
        key = text, learned is None
        if key not in kept or (learned and kept[key].learned is not learned):
            kept[key] = encode_concept(pipe, self.site, self.placed(pipe), text, learned)
        return kept[key]

    def attach(
        self,
        pipe: typing.Any,
        concepts: Mapping[str, float],
        *,
        rule: str = "gated",
        negative_branch: bool | None = None,
        learned: Mapping[str, Learned] | None = None,
    ) -> "Attachment":
        """Steer ``pipe`` until the block ends or :meth:`Attachment.remove` is called.

        ``concepts`` maps a text to its strength: negative removes, positive adds, 0 changes no bit.
        ``negative_branch`` also steers the negative prompt, by the opposite amount; by default the
        rules that add a fixed vector do, ``gated`` and ``swap`` do not. ``learned`` is what labelled
        prompts said of a concept. Raises InputError where the SAE does not fit the pipeline.
        """
        changes = {}
        for text, strength in concepts.items():
            _check_strength(text, strength)
            concept = self.concept(pipe, text, (learned or {}).get(text))
            changes[text] = change_of(rule, self.placed(pipe), concept)
        if negative_branch is None:
            negative_branch = rule in ON_BOTH_BRANCHES
        return self.attach_changes(pipe, changes, concepts, negative_branch=negative_branch)

    def attach_changes(
        self,
        pipe: typing.Any,
        changes: Mapping[str, Change],
        strengths: Mapping[str, float],
        *,
        negative_branch: bool,
    ) -> "Attachment":
        """Steer by any functions of the activations; see :mod:`revelio_jax.steering.rules`."""
        return Attachment(pipe, self._fit(pipe), dict(changes), dict(strengths), negative_branch)

    def placed(self, pipe: typing.Any) -> Sae:
        """The SAE on the device of the encoder that it steers."""
        device = getattr(pipe, self._fit(pipe).component).device
        if self.sae.W_dec_FD.device != device:
            self.sae = self.sae.to(device)
        return self.sae

    def _fit(self, pipe: typing.Any) -> sites.Site:
        """The site in ``pipe``. Raises InputError where the SAE is for another model."""
        trained_on = self.sae.metadata.get("model_id", "")
        if (family := sites.family(pipe)) != "sd":
            raise InputError(
                f"this version steers Stable Diffusion 1.x and 2.x (sd), this pipeline is {family}"
            )
        site = sites.resolve(pipe, self.site)
        if site.d != self.sae.d:
            raise InputError(
                f"the SAE is for another model: its width is {self.sae.d}, {self.site} of this pipeline "
                f"has {site.d}; it was trained on {trained_on!r}"
            )
        if pipe.name_or_path and trained_on and pathlib.Path(pipe.name_or_path) != pathlib.Path(trained_on):
            warnings.warn(f"the SAE was trained on {trained_on}, this is {pipe.name_or_path}", stacklevel=4)
        return site


@dataclasses.dataclass
class Attachment:
    """Steering in force: a context manager; outside of one, call :meth:`remove` at the end."""

    pipe: typing.Any
    site: sites.Site
    changes: dict[str, Change]
    strengths: dict[str, float]
    negative_branch: bool

    def __post_init__(self) -> None:
        branches.watch(self.pipe)
        self._hook = sites.hook(self.site, self._steer)

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Leave the pipeline as it was. Safe to call again."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            branches.unwatch(self.pipe)

    def set_strength(self, concept: str, strength: float) -> None:
        """Change a strength between pictures."""
        if concept not in self.changes:
            raise InputError(f"{concept!r} is not attached; attached: {', '.join(self.changes)}")
        _check_strength(concept, strength)
        self.strengths[concept] = strength

    def _steer(self, x: torch.Tensor) -> torch.Tensor | None:
        """x + change for activations [B, T, D]; None, which leaves every bit as it is, without one."""
        signs = {branches.CONDITIONAL: 1, branches.UNCONDITIONAL: -1 if self.negative_branch else 0}
        sign = signs.get(branches.current(), 0)
        active = {text: sign * s for text, s in self.strengths.items() if sign * s}
        if not active:
            return None
        x_BTD = x.float()
        parts = [self.changes[text](x_BTD, strength) for text, strength in active.items()]
        return x_BTD + functools.reduce(torch.add, parts)


def _check_strength(concept: str, strength: float) -> None:
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise InputError(f"strength of {concept!r} is {strength!r}; it must be a finite number")
