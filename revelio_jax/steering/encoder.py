"""Encode texts as latents of one SAE, each text once for the same weights."""

import dataclasses
import typing
import weakref
from collections.abc import Hashable

import torch

from revelio_jax.pipelines import hook_points
from revelio_jax.steering import weights
from revelio_jax.steering.compatibility import hook_points_of
from revelio_jax.steering.concept import EncodedConcept, encode_concept
from revelio_jax.steering.learned_concepts import LearnedConcept
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.sampled_concepts import CallArguments, encode_sampled


@dataclasses.dataclass(frozen=True)
class Entry:
    """A cached concept, the learned concept that replaced its latents, and the fingerprint of the weights."""

    concept: EncodedConcept
    learned: LearnedConcept | None
    fingerprint: Hashable


class ConceptEncoder:
    """Encodes concepts as latents of ``sae``.

    It caches them while the text encoder or denoiser exists and keeps its weights, adapters and vocabulary.
    """

    def __init__(self, sae: Sae):
        self.sae = sae
        self._entries: weakref.WeakKeyDictionary[torch.nn.Module, dict[Hashable, Entry]] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[typing.Any, ...]:
        # A copy in another process encodes its concepts anew: the text encoders do not go with it.
        return ConceptEncoder, (self.sae,)

    def sae_on(self, device: torch.device | None) -> Sae:
        """Move the SAE to a device and return it; None does not move it."""
        if device is not None and self.sae.W_dec_FD.device != device:
            self.sae = self.sae.to(device)
        return self.sae

    def fingerprint(self, pipe: typing.Any) -> Hashable:
        """Return a value that changes with the weights that encoded concepts depend on."""
        return weights.fingerprint(pipe, hook_points_of(self.sae, pipe))

    def encode(
        self,
        pipe: typing.Any,
        text: str,
        learned: LearnedConcept | None = None,
        tokens: int | None = None,
        sampling: CallArguments | None = None,
    ) -> EncodedConcept:
        """Return a text in latents; later calls reuse it until weights of the pipeline change.

        ``learned`` replaces the latents of the text itself. ``tokens`` is the prompt length at a text encoder. At a
        hook point of the denoiser, images of the text are sampled with the arguments ``sampling`` of the pipeline.
        """
        point = hook_points_of(self.sae, pipe)[0]
        site, in_denoiser = self.sae.site, hook_points.is_denoiser_point(point.name)
        entries = self._entries.setdefault(getattr(pipe, point.component), {})
        key = text, repr(sampling) if in_denoiser else tokens, learned is None
        entry, fingerprint = entries.get(key), self.fingerprint(pipe)
        if entry is None or entry.learned is not learned or entry.fingerprint != fingerprint:
            if in_denoiser:
                concept = encode_sampled(pipe, site, self.sae_on, text, learned, sampling, self.sae.reads_difference)
            else:
                concept = encode_concept(pipe, site, self.sae_on, text, learned, tokens)
            entry = entries[key] = Entry(concept, learned, fingerprint)
        return entry.concept
