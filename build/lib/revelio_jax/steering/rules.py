"""How a concept changes activations. Each rule gives a function of the activations and a weight.

A negative weight removes the concept, a positive one adds it.
"""

import dataclasses
import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.steering.concept import EncodedConcept, presence
from revelio_jax.steering.sae import Sae

Weight = float | torch.Tensor
"""A strength, or one for each row of the batch: [B, 1, 1]."""
Change = typing.Callable[[torch.Tensor, Weight], torch.Tensor]
"""Activations [B, T, D] in float32 and a weight to the change [B, T, D] or [T, D]."""


@dataclasses.dataclass(frozen=True)
class Add:
    """weight * v [T, D], or [1, D] for every position alike; whatever the activations are."""

    v_TD: torch.Tensor

    def __call__(self, x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        return weight * self.v_TD

    def split(self, widths: list[int]) -> list["Add"]:
        """One for each of the sites that are joined in D."""
        return [Add(v_TD.contiguous()) for v_TD in self.v_TD.split(widths, dim=-1)]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Latents [K] times 1 + weight: at -1 they are out. Where they do not fire nothing changes."""

    sae: Sae
    latents: torch.Tensor

    def __call__(self, x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        return weight * (self.sae.codes(x_BTD)[..., self.latents] @ self.sae.W_dec_FD[self.latents])


@dataclasses.dataclass(frozen=True)
class Set:
    """A latent set to a value, in every position; a weight between 0 and 1 goes part of the way."""

    sae: Sae
    latent: int
    value: float

    def __call__(self, x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        z_BT1 = self.sae.codes(x_BTD)[..., self.latent, None]
        return weight * (self.value - z_BT1) * self.sae.W_dec_FD[self.latent]


@dataclasses.dataclass(frozen=True)
class Swap:
    """weight * v [T, D] in prompts that hold the concept where the weight is below 0, else in the others."""

    sae: Sae
    latents: torch.Tensor
    threshold: float
    v_TD: torch.Tensor

    def __call__(self, x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        holds_B11 = (presence(self.sae.codes(x_BTD), self.latents) > self.threshold)[:, None, None]
        weight = torch.as_tensor(weight, device=x_BTD.device)
        return weight * torch.where(weight < 0, holds_B11, ~holds_B11) * self.v_TD


def paper(sae: Sae, concept: EncodedConcept) -> Change:
    """Concept Steerers: W_dec ReLU(W_enc (h_c - b) + b_enc), without top-k, at every position."""
    return Add(sae.directions(concept.codes))


def contrast(sae: Sae, concept: EncodedConcept) -> Change:
    """The concept's code minus the empty prompt's, where positive: what the concept itself adds."""
    return Add(sae.directions(torch.relu(concept.codes - concept.empty)))


def gated(sae: Sae, concept: EncodedConcept) -> Change:
    """Scale the prompt's own latents, those few that belong to the concept.

    Strength -1 takes them out; prompts in which they do not fire are left alone.
    """
    return Scale(sae, concept.learned.latents)


def swap(sae: Sae, concept: EncodedConcept) -> Change:
    """Move a prompt by the mean difference between prompts with the concept and prompts without.

    Strength -1 swaps the usual code of the concept for the usual code without it (latents that the
    concept suppresses among them) in prompts that hold it; +1 the other way in prompts that do not.
    """
    learned = concept.learned
    return Swap(sae, learned.latents, learned.threshold, sae.directions(learned.difference))


RULES = {"paper": paper, "contrast": contrast, "gated": gated, "swap": swap}
# Those that add a fixed vector also steer the negative prompt, by the opposite amount.
ON_BOTH_BRANCHES = ("paper", "contrast")
AUTO = "auto"
# What ``auto`` stands for, the best in the mean over concepts on both miniatures, as
# python -m revelio_jax.benchmark.table measured them: where labelled prompts taught a concept, and where its
# text is all there is.
WHERE_LEARNED, ELSE = "swap", "contrast"


def chosen(rule: str, is_learned: bool) -> str:
    """The name of the rule for a concept that labelled prompts taught, or not. Raises InputError."""
    if rule == AUTO:
        return WHERE_LEARNED if is_learned else ELSE
    known(rule)
    return rule


def change_of(rule: str, sae: Sae, concept: EncodedConcept) -> Change:
    """The change that ``rule`` makes for ``concept``. Raises InputError on an unknown rule."""
    return known(rule)(sae, concept)


def known(rule: str) -> typing.Callable[[Sae, EncodedConcept], Change]:
    """The function of a rule. Raises InputError that names those there are."""
    if rule not in RULES:
        raise InputError(f"rule is {rule!r}; allowed: {', '.join((AUTO, *RULES))}")
    return RULES[rule]
