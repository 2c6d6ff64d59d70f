"""The steerer: add or remove concepts in a diffusers pipeline with an exported SAE."""

import contextlib
import dataclasses
import functools
import numbers
import pathlib
import typing
from collections.abc import Mapping, Sequence

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points, hooks
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.steering import hub, monitor, session, text_latents, vectors
from revelio_jax.steering.attachment import AttachedConcept, Attachment, ConceptSource
from revelio_jax.steering.compatibility import check_model_name, hook_points_of, refuse_unused
from revelio_jax.steering.concept import execution_device
from revelio_jax.steering.encoder import ConceptEncoder
from revelio_jax.steering.learned_concepts import LearnedConcept
from revelio_jax.steering.pooled import Pooled
from revelio_jax.steering.rules import (
    AUTO,
    ON_BOTH_BRANCHES,
    Add,
    ChangeFunction,
    change_function,
    check_rule,
    resolve_rule,
)
from revelio_jax.steering.sae import Sae, load_sae
from revelio_jax.steering.sampled_concepts import CallArguments
from revelio_jax.steering.sources import FunctionSource, LatentSource, TextSource
from revelio_jax.steering.strengths import Key, Strength, check_strength
from revelio_jax.steering.vectors import Concept, VectorSource
from revelio_jax.steering.where import Where, WhereFields

ConceptKey = str | int | pathlib.Path | Concept


class Steerer:
    """Adds or removes concepts while a pipeline generates images.

    >>> steerer = Steerer.from_pretrained("runs/mini_sd/export")
    >>> with steerer.attach(pipe, {"glossy 3d": -1.0}):
    ...     pipe("a glossy 3d emoji of a red apple")
    """

    def __init__(self, sae: Sae):
        self.encoder = ConceptEncoder(sae)

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
        """Load an SAE of this project, of SAELens (from version 6) or of sparsify.

        ``folder`` is a path or a hub id ``owner/name``. ``site`` is the hook point, for example ``clip.layer.9``, if
        the folder does not name it. ``subfolder`` selects one of several SAEs. ``revision`` and ``token`` are for the
        hub. Only JSON and safetensors files are opened.

        Raise InputError if the folder cannot be read or is malformed.
        """
        return cls(load_sae(hub.find(folder, revision, subfolder, token), site))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        license: str = "unknown",
        token: str | None = None,
    ) -> str:
        """Publish the SAE with a model card as ``owner/name``; return the address of the commit.

        ``license`` is the hub's identifier of a license, for example ``mit``. Raise InputError if the hub refuses.
        """
        return hub.push(self.sae, repo_id, private=private, license=license, token=token)

    @property
    def sae(self) -> Sae:
        """Return the SAE, on the device of its last use."""
        return self.encoder.sae

    @property
    def site(self) -> str:
        """Return the hook point that the SAE was trained on, or several joined by + that share the SAE."""
        return self.sae.site

    def sae_for(self, pipe: typing.Any) -> Sae:
        """Return the SAE on the device of the component that it steers."""
        return self.encoder.sae_on(execution_device(hook_points_of(self.sae, pipe)[0].module))

    def latents_for(
        self, pipe: typing.Any, text: str, top: int = 20, sampling: CallArguments | None = None
    ) -> list[text_latents.TextLatent]:
        """Return the ``top`` latents that fire more on ``text`` than on the empty prompt, largest difference first.

        At a hook point of the denoiser, the values are means over images that the pipeline samples of the text.
        ``sampling`` has arguments of the pipeline's call. Raise InputError if ``top`` is not a positive whole number.
        """
        if hook_points.is_denoiser_point(self.site):
            return text_latents.sampled_latents(self.encoder.encode(pipe, text, sampling=sampling), top)
        return text_latents.latents_for(pipe, self.site, self.sae_for(pipe), text, top)

    def vectors(
        self, pipe: typing.Any, text: str, rule: str = "contrast", sampling: CallArguments | None = None
    ) -> Concept:
        """Return a text as vectors that can be saved and attached without the SAE.

        Raise InputError if ``rule`` does not add fixed vectors.
        """
        function = change_function(rule, self.sae_for(pipe), self.encoder.encode(pipe, text, sampling=sampling))
        if not isinstance(function, Add):
            raise InputError(f"rule is {rule!r}; vectors need one of {', '.join(ON_BOTH_BRANCHES)}")
        return vectors.from_joined_vectors(pipe, self.site, function.v_TD, text, rule)

    def watch(
        self, pipe: typing.Any, *, latents: Sequence[int] | None = None, max_bytes: int = monitor.MAX_BYTES
    ) -> contextlib.AbstractContextManager[monitor.WatchedCodes]:
        """Record the latents that fire while ``pipe`` runs in the block; see :mod:`revelio_jax.steering.watching`.

        ``latents`` limits recording to these. Raise InputError if the SAE does not fit the pipeline or a latent is out
        of range, and in the call if the codes need more than ``max_bytes`` bytes of memory.
        """
        return monitor.watch(pipe, hook_points_of(self.sae, pipe), self.encoder.sae_on, latents, max_bytes)

    def attach(
        self,
        pipe: typing.Any,
        concepts: Mapping[ConceptKey, Strength],
        *,
        rule: str = AUTO,
        where: Where | None = None,
        negative_branch: bool | None = None,
        learned: Mapping[str, LearnedConcept] | None = None,
        sampling: CallArguments | None = None,
        other_model: bool = False,
        **limits: typing.Unpack[WhereFields],
    ) -> Attachment:
        """Steer ``pipe`` until the block ends or :meth:`Attachment.remove` is called.

        ``concepts`` maps each concept to its strength: negative removes, positive adds, 0 changes no bit. A concept is
        one of

        - a text, which acts by ``rule`` (see :mod:`revelio_jax.steering.rules`); ``auto`` is ``transport`` for
          texts in ``learned`` whose file has a change, ``swap`` for the others in ``learned``, otherwise ``contrast``;
        - the number of a latent, which is multiplied by 1 + strength, or set with Clamp(value);
        - a file of :func:`save_concept`, as a Path or ending in .safetensors, or a :class:`Concept`; its vectors are
          added.

        ``where`` limits steering to tokens, timesteps or an area of the image. The fields of :class:`Where` can also
        be passed as keywords, for example ``steps=(1000, 600)``.

        ``negative_branch`` also steers the unconditional branch, in the opposite direction. None means True for saved
        vectors and for rules that add a fixed vector, and False for ``gated``, ``swap``, ``transport`` and latents.

        ``learned`` maps texts to concepts that were learned from labeled prompts.

        At a hook point of the denoiser, a text is encoded once, from images that the pipeline samples of it.
        ``sampling`` has arguments of that call, for example height and width; the default is 10 steps.

        Raise InputError if an argument is not valid or the SAE does not fit the pipeline. Without ``other_model``, also
        raise it if the SAE was trained on a model of another name.

        If the hook point is inside of compiled code, the next call recompiles the code.
        """
        strengths, learned = _concepts(concepts), learned or {}
        check_rule(rule)
        if negative_branch not in (None, True, False):
            raise InputError(f"negative_branch is {negative_branch!r}; allowed: None, True, False")
        points = hook_points_of(self.sae, pipe)
        if not other_model:
            check_model_name(self.sae, pipe)
        attached: dict[Key, AttachedConcept] = {}
        for key, strength in strengths.items():
            source = self._source(pipe, key, rule, learned, sampling)
            on_negative = _on_negative(source) if negative_branch is None else negative_branch
            attached[key] = AttachedConcept(source, check_strength(key, strength), on_negative)
        return self._attach(pipe, points, attached, dataclasses.replace(where or Where(), **limits))

    def attach_functions(
        self,
        pipe: typing.Any,
        functions: Mapping[Key, ChangeFunction],
        strengths: Mapping[Key, float],
        *,
        negative_branch: bool,
        pooled: Mapping[Key, Pooled] | None = None,
        where: Where | None = None,
    ) -> Attachment:
        """Steer by functions of the activations (see :mod:`revelio_jax.steering.rules`) at the SAE's hook points.

        ``pooled`` has each concept in the pooled vector, and steers the pooled vector too. ``where`` limits steering to
        tokens or timesteps.
        """
        attached = {
            key: AttachedConcept(
                FunctionSource(functions[key], pooled[key] if pooled else None),
                check_strength(key, strength),
                negative_branch,
            )
            for key, strength in strengths.items()
        }
        where = dataclasses.replace(where or Where(), pooled=True if pooled else None)
        return self._attach(pipe, hook_points_of(self.sae, pipe), attached, where)

    def _attach(
        self,
        pipe: typing.Any,
        points: tuple[hooks.HookPoint, ...],
        concepts: Mapping[Key, AttachedConcept],
        where: Where,
    ) -> Attachment:
        family, difference = family_of(pipe), self.sae.reads_difference
        if any(concept.weight(CONDITIONAL) or concept.weight(UNCONDITIONAL) for concept in concepts.values()):
            refuse_unused(pipe, points)
        has_text = any(isinstance(concept.source, TextSource) for concept in concepts.values())
        attachment = Attachment(
            points,
            concepts,
            where,
            family,
            owner=self,
            reads_difference=difference,
            fingerprint=functools.partial(self.encoder.fingerprint, pipe) if has_text else None,
        )
        return session.attach(pipe, attachment)

    def _source(
        self,
        pipe: typing.Any,
        key: ConceptKey,
        rule: str,
        learned: Mapping[str, LearnedConcept],
        sampling: CallArguments | None,
    ) -> ConceptSource:
        """Return the source of a concept. Raise InputError if it does not fit the SAE or the pipeline."""
        n_latents = self.sae.n_latents
        if isinstance(key, int):
            if not 0 <= key < n_latents:
                raise InputError(f"latent {key} is out of range: this SAE has latents 0-{n_latents - 1}")
            return LatentSource(self.encoder, key)
        if isinstance(key, str) and not key.endswith(".safetensors"):
            rule = resolve_rule(rule, learned.get(key))
            if key in learned and (count := learned[key].difference.shape[-1]) != n_latents:
                raise InputError(f"learned[{key!r}] has {count} latents; it must have {n_latents}, like this SAE")
            return TextSource(self.encoder, pipe, key, rule, learned.get(key), sampling)
        concept = key if isinstance(key, Concept) else vectors.load_concept(key)
        vectors.matching_points(pipe, concept)
        if concept.sites != self.site:
            raise InputError(
                f"the concept {concept.text!r} is for {concept.sites}, but this SAE is for {self.site}; attach it with "
                "steering.attach_vectors instead"
            )
        return VectorSource(concept)


def _on_negative(source: ConceptSource) -> bool:
    """Return whether a concept also steers the unconditional branch by default."""
    return isinstance(source, VectorSource) or (isinstance(source, TextSource) and source.rule in ON_BOTH_BRANCHES)


def _concepts(concepts: typing.Any) -> dict[ConceptKey, typing.Any]:
    """Return concepts with plain integers for latents. Raise InputError if a key is not a concept."""
    if not isinstance(concepts, Mapping):
        raise InputError(f"concepts is {concepts!r}; it must map concepts to strengths, for example {{'red': -1.0}}")
    checked: dict[ConceptKey, typing.Any] = {}
    for key, strength in typing.cast("Mapping[typing.Any, typing.Any]", concepts).items():
        if not isinstance(key, bool) and isinstance(key, numbers.Integral):
            key = int(key)
        elif not (isinstance(key, pathlib.Path | Concept) or (isinstance(key, str) and key.strip())):
            raise InputError(
                f"a concept is {key!r}; it must be a text, the number of a latent, a file of save_concept or a Concept"
            )
        checked[key] = strength
    return checked
