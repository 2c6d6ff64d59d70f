"""Encode texts as latents of one SAE, each text once."""

import typing
import weakref

import torch

from revelio_jax.pipelines import hook_points
from revelio_jax.steering.compatibility import hook_points_of
from revelio_jax.steering.concept import EncodedConcept, encode_concept
from revelio_jax.steering.learned_concepts import LearnedConcept
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.sampled_concepts import CallArguments, encode_sampled


class ConceptEncoder:
    """Encodes concepts as latents of ``sae``, and caches them while the text encoder or denoiser exists."""

    def __init__(self, sae: Sae):
        self.sae = sae
        self._encoded: weakref.WeakKeyDictionary[
            torch.nn.Module, dict[tuple[typing.Any, ...], tuple[LearnedConcept | None, EncodedConcept]]
        ] = weakref.WeakKeyDictionary()

    def sae_on(self, device: torch.device | None) -> Sae:
        """Move the SAE to a device and return it; None does not move it."""
        if device is not None and self.sae.W_dec_FD.device != device:
            self.sae = self.sae.to(device)
        return self.sae

    def encode(
        self,
        pipe: typing.Any,
        text: str,
        learned: LearnedConcept | None = None,
        tokens: int | None = None,
        sampling: CallArguments | None = None,
    ) -> EncodedConcept:
        """Return a text in latents; the first call encodes it, and later calls reuse it.

        ``learned`` replaces the latents of the text itself. ``tokens`` is the prompt length at a text encoder. At a
        hook point of the denoiser, images of the text are sampled with the arguments ``sampling`` of the pipeline.
        """
        point = hook_points_of(self.sae, pipe)[0]
        site, in_denoiser = self.sae.site, hook_points.is_denoiser_point(point.name)
        encoded = self._encoded.setdefault(getattr(pipe, point.component), {})
        key = text, repr(sampling) if in_denoiser else tokens, learned is None
        if key not in encoded or (learned and encoded[key][0] is not learned):
            if in_denoiser:
                concept = encode_sampled(pipe, site, self.sae_on, text, learned, sampling, self.sae.reads_difference)
            else:
                concept = encode_concept(pipe, site, self.sae_on, text, learned, tokens)
            encoded[key] = learned, concept
        return encoded[key][1]
