"""Sources of concepts: see :class:`revelio_jax.steering.attachment.ConceptSource`.

A source recomputes the change function of a concept for another device, prompt length or strength.
"""

import dataclasses
import typing

import torch

from revelio_jax.steering.encoder import ConceptEncoder
from revelio_jax.steering.learned_concepts import LearnedConcept
from revelio_jax.steering.pooled import Pooled, pooled_of
from revelio_jax.steering.rules import ChangeFunction, Scale, Set, change_function
from revelio_jax.steering.sampled_concepts import CallArguments
from revelio_jax.steering.strengths import Clamp, Strength


@dataclasses.dataclass(frozen=True)
class TextSource:
    """A text, encoded as latents of an SAE, and the rule by which it changes activations."""

    encoder: ConceptEncoder
    pipe: typing.Any
    text: str
    rule: str
    learned: LearnedConcept | None
    sampling: CallArguments | None

    def change_function(self, strength: Strength, device: torch.device | None, tokens: int | None) -> ChangeFunction:
        concept = self.encoder.encode(self.pipe, self.text, self.learned, tokens, self.sampling)
        concept = concept if device is None else concept.to(device)
        return change_function(self.rule, self.encoder.sae_on(concept.pre_codes.device), concept)

    def pooled(self) -> Pooled | None:
        return pooled_of(self.pipe, self.text)


@dataclasses.dataclass(frozen=True)
class LatentSource:
    """One latent of an SAE, scaled by 1 + strength or set to the value of a Clamp."""

    encoder: ConceptEncoder
    latent: int

    def change_function(self, strength: Strength, device: torch.device | None, tokens: int | None) -> ChangeFunction:
        sae = self.encoder.sae_on(device)
        if isinstance(strength, Clamp):
            return Set(sae, self.latent, strength.value)
        return Scale(sae, torch.tensor([self.latent], device=sae.W_dec_FD.device))

    def pooled(self) -> Pooled | None:
        return None


@dataclasses.dataclass(frozen=True)
class FunctionSource:
    """A function of the activations that is the same for every device and prompt length."""

    function: ChangeFunction
    pooled_vector: Pooled | None = None

    def change_function(self, strength: Strength, device: torch.device | None, tokens: int | None) -> ChangeFunction:
        return self.function

    def pooled(self) -> Pooled | None:
        return self.pooled_vector
