"""The steerer: an exported SAE as a control on a diffusers pipeline."""

import numbers
import pathlib
import typing
import weakref
from collections.abc import Mapping

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.steering import hub, text_latents, vectors
from revelio_jax.steering.attachment import Attachment, Clamp, Key, Strength, Where
from revelio_jax.steering.concept import EncodedConcept, encode_concept, execution_device
from revelio_jax.steering.learned_concepts import Learned
from revelio_jax.steering.pooled import Pooled, pooled_of
from revelio_jax.steering.rules import AUTO, ON_BOTH_BRANCHES, Add, Change, Scale, Set, change_of, chosen
from revelio_jax.steering.sae import Sae, load_sae
from revelio_jax.steering.sampled_concepts import Sampling, encode_sampled
from revelio_jax.steering.session import session
from revelio_jax.steering.vectors import Concept


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

    def latents_for(
        self, pipe: typing.Any, text: str, top: int = 20, sampling: Sampling | None = None
    ) -> list[dict[str, typing.Any]]:
        """The ``top`` latents that ``text`` uses most beyond the empty prompt, strongest first.

        Rows are {latent, value, empty, position, token}: its largest value on the prompt and on the
        empty one, and where in the prompt that is. At a site of the denoiser the values are means over
        pictures that are sampled of the text, see :meth:`attach`, and position is -1.
        """
        if hook_points.is_denoiser_site(self.site):
            return text_latents.sampled_latents(self.concept(pipe, text, sampling=sampling), top)
        return text_latents.latents_for(pipe, self.site, self.placed(pipe), text, top)

    @property
    def site(self) -> str:
        """The hook point that the SAE was trained on; several, joined by +, have one SAE."""
        return self.sae.metadata["site"]

    @property
    def reads_difference(self) -> bool:
        """Whether it was trained on a block's output minus its input."""
        return self.sae.metadata.get("value") == "difference"

    def concept(
        self,
        pipe: typing.Any,
        text: str,
        learned: Learned | None = None,
        tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> EncodedConcept:
        """The concept in latents; encoded at the first call, then kept.

        ``tokens`` is how many prompts have, at a text encoder. At a site of the denoiser the text is
        sampled, with the arguments ``sampling`` of the pipeline.
        """
        first = self._fit(pipe)[0]
        kept = self._concepts.setdefault(getattr(pipe, first.component), {})
        in_denoiser = hook_points.is_denoiser_site(first.name)
        key = text, repr(sampling) if in_denoiser else tokens, learned is None
        if key not in kept or (learned and kept[key][0] is not learned):
            if in_denoiser:
                made = encode_sampled(pipe, self.site, self._on, text, learned, sampling, self.reads_difference)
            else:
                made = encode_concept(pipe, self.site, self._on, text, learned, tokens)
            kept[key] = learned, made
        return kept[key][1]

    def vectors(self, pipe: typing.Any, text: str, rule: str = "contrast", sampling: Sampling | None = None) -> Concept:
        """The concept as vectors, which can be saved and need no SAE; of the rules that have such."""
        change = change_of(rule, self.placed(pipe), self.concept(pipe, text, sampling=sampling))
        if not isinstance(change, Add):
            raise InputError(f"rule is {rule!r}; vectors are made by {', '.join(ON_BOTH_BRANCHES)}")
        return vectors.of_joined(pipe, self.site, change.v_TD, text, rule)

    def attach(
        self,
        pipe: typing.Any,
        concepts: Mapping[str | int | pathlib.Path | Concept, Strength],
        *,
        rule: str = AUTO,
        positions: str | torch.Tensor = "all",
        steps: tuple[float, float] | None = None,
        ramp: tuple[float, float] = (1.0, 1.0),
        mask: torch.Tensor | None = None,
        pooled: bool | None = None,
        negative_branch: bool | None = None,
        learned: Mapping[str, Learned] | None = None,
        sampling: Sampling | None = None,
        other_model: bool = False,
    ) -> Attachment:
        """Steer ``pipe`` until the block ends or :meth:`Attachment.remove` is called.

        ``concepts`` maps each concept to its strength: negative removes, positive adds, 0 changes no bit.
        A concept is

        - a text, which acts by ``rule`` (see :mod:`revelio_jax.steering.rules`); ``auto`` is ``swap`` for
          one that is in ``learned``, else ``contrast``;
        - the number of a latent, which is multiplied by 1 + strength, or set with Clamp(value);
        - a file of :func:`save_concept`, as a Path or ending in .safetensors, or a :class:`Concept`: its
          vectors are added, whatever the rule.

        ``positions``: ``all``, ``no_padding``, ``content`` (without BOS and EOS) or a bool mask [T], for
        prompts of T tokens; at sites of a denoiser ``all`` or a mask of its positions.

        At sites of the denoiser: ``steps`` (first, last) limits steering to timesteps from first down to
        last, where 1000 is noise and 0 the picture, for FLUX 1000 sigma; ``ramp`` (start, end) multiplies
        strengths, linearly over that range; ``mask`` [H, W], values in 0 .. 1, is a brush on the picture,
        brought to the grid of the site by averages.

        ``pooled``: the vector that CLIP pools a prompt to, which SDXL and FLUX take beside the tokens.
        True steers it: where it does not come from the site by itself, by strength x (that of the concept -
        that of the empty prompt), removing at most what the prompt has of it. False leaves it as it is
        without steering. By default it is what the site makes of it: nothing for T5, steered for the second
        encoder of SDXL.

        ``negative_branch`` also steers the negative prompt, by the opposite amount; by default concepts do
        whose rule adds a fixed vector, and vectors; ``gated``, ``swap`` and latents do not. ``learned`` is
        what labelled prompts said of a concept. At a site of the denoiser a text is read off pictures that
        the pipeline samples of it, once: with 10 steps, or with the arguments ``sampling`` of its call, such
        as height and width.

        Raises InputError where the SAE does not fit the pipeline, and where that bears another name than
        the model that the SAE was trained on, unless ``other_model`` says that this is known.

        What torch.compile made before is compiled again where it holds the site.
        """
        concepts, learned = _concepts(concepts), learned or {}
        if negative_branch not in (None, True, False):
            raise InputError(f"negative_branch is {negative_branch!r}; allowed: None, True, False")
        rules = {key: chosen(rule, key in learned) for key in concepts}
        hooked = self._fit(pipe)
        trained_on, here = self.sae.metadata.get("model_id", ""), pipe.name_or_path or ""
        if trained_on and here and not other_model and not same_model(trained_on, here):
            raise InputError(
                f"the SAE is for another model: it was trained on {trained_on!r}, this pipeline is {here!r}; "
                "where that is the same model, or one made from it, pass other_model=True"
            )
        loaded = {key: self._loaded(pipe, key) for key in concepts if not _is_own(key)}
        for key in concepts:
            if isinstance(key, int) and not 0 <= key < self.sae.n_latents:
                raise InputError(f"latent {key} is none of this SAE's, which has 0-{self.sae.n_latents - 1}")
            count = learned[key].difference.shape[-1] if key in learned else self.sae.n_latents
            if count != self.sae.n_latents:
                raise InputError(
                    f"learned of {key!r} is of another SAE, with {count} latents; this one has {self.sae.n_latents}"
                )

        def make(
            strengths: Mapping[Key, Strength], device: torch.device | None, length: int | None
        ) -> dict[Key, Change]:
            changes: dict[Key, Change] = {}
            for key, strength in strengths.items():
                if key in loaded:
                    changes[key] = vectors.change(loaded[key], device, length)
                elif isinstance(key, int):
                    changes[key] = _of_latent(self._on(device), key, strength)
                else:
                    concept = self.concept(pipe, key, learned.get(key), length, sampling)
                    concept = concept if device is None else concept.to(device)
                    changes[key] = change_of(rules[key], self._on(concept.codes.device), concept)
            return changes

        def make_pooled(key: Key) -> Pooled:
            known = pooled_of(pipe, key) if _is_text(key) else getattr(loaded.get(key), "pooled", None)
            if known is None:
                raise InputError(f"pooled is True, but {key} has no pooled vector; a text has one")
            return known

        fixed = {key for key in concepts if _is_text(key) and rules[key] in ON_BOTH_BRANCHES}
        on_negative = {None: fixed | loaded.keys(), True: set(concepts), False: set()}[negative_branch]
        return Attachment(
            session(pipe),
            self,
            hooked,
            make,
            concepts,
            on_negative,
            Where(positions, steps, ramp, mask, pooled),
            self.reads_difference,
            make_pooled,
        )

    def attach_changes(
        self,
        pipe: typing.Any,
        changes: Mapping[Key, Change],
        strengths: Mapping[Key, float],
        *,
        negative_branch: bool,
        pooled: Mapping[Key, Pooled] | None = None,
    ) -> Attachment:
        """Steer by any functions of the activations; see :mod:`revelio_jax.steering.rules`."""
        return Attachment(
            session(pipe),
            self,
            self._fit(pipe),
            lambda strengths, device, length: dict(changes),
            strengths,
            strengths if negative_branch else (),
            Where(pooled=True if pooled else None),
            self.reads_difference,
            lambda key: pooled[key],
        )

    def placed(self, pipe: typing.Any) -> Sae:
        """The SAE on the device of the component that it steers."""
        return self._on(execution_device(self._fit(pipe)[0].module))

    def _on(self, device: torch.device | None) -> Sae:
        if device is not None and self.sae.W_dec_FD.device != device:
            self.sae = self.sae.to(device)
        return self.sae

    def _loaded(self, pipe: typing.Any, key: Concept | str | pathlib.Path) -> Concept:
        concept = key if isinstance(key, Concept) else vectors.load_concept(key)
        vectors.fit(pipe, concept)
        if concept.sites != self.site:
            raise InputError(
                f"the concept {concept.text!r} is of {concept.sites}, this SAE of {self.site}; "
                "steering.attach_vectors attaches it by itself"
            )
        return concept

    def _fit(self, pipe: typing.Any) -> tuple[hook_points.HookPoint, ...]:
        """The sites in ``pipe``. Raises InputError where the SAE is for another model."""
        trained_on, family = self.sae.metadata.get("model_id", ""), self.sae.metadata.get("family")
        if family and family != hook_points.family(pipe):
            raise InputError(
                f"the SAE is for another model, of the family {family}: it was trained on {trained_on!r}; "
                f"this pipeline is {hook_points.family(pipe)}"
            )
        hooked = hook_points.resolve_joined(pipe, self.site)
        width = sum(site.d for site in hooked)
        if width != self.sae.d:
            raise InputError(
                f"the SAE is for another model: its width is {self.sae.d}, {self.site} of this pipeline "
                f"has {width}; it was trained on {trained_on!r}"
            )
        return hooked


def same_model(one: str, other: str) -> bool:
    """Whether two hub ids or folders name one model: a copy bears its name, and ids move between owners."""
    return _model_name(one) == _model_name(other)


def _model_name(model: str) -> str:
    parts = pathlib.PurePath(model).parts
    cached = [part for part in parts if part.startswith("models--")]  # the hub's cache: models--OWNER--NAME
    return (cached[-1].split("--")[-1] if cached else parts[-1] if parts else "").lower()


def _concepts(given: typing.Any) -> dict[Key, Strength]:
    """Concepts with plain integers for latents. Raises InputError where one is none."""
    if not isinstance(given, Mapping):
        raise InputError(f"concepts is {given!r}; it must map concepts to strengths, as {{'red': -1.0}}")
    concepts: dict[Key, Strength] = {}
    for key, strength in given.items():
        if isinstance(key, numbers.Integral) and not isinstance(key, bool):
            key = int(key)
        elif not (isinstance(key, pathlib.Path | Concept) or (isinstance(key, str) and key.strip())):
            raise InputError(
                f"a concept is {key!r}; it must be a text, the number of a latent, a file of save_concept or a Concept"
            )
        concepts[key] = strength
    return concepts


def _is_text(key: Key) -> bool:
    return isinstance(key, str) and not key.endswith(".safetensors")


def _is_own(key: Key) -> bool:
    """Whether the SAE gives the change: that of a text or of a latent."""
    return _is_text(key) or isinstance(key, int)


def _of_latent(sae: Sae, latent: int, strength: Strength) -> Change:
    if isinstance(strength, Clamp):
        return Set(sae, latent, strength.value)
    return Scale(sae, torch.tensor([latent], device=sae.W_dec_FD.device))
