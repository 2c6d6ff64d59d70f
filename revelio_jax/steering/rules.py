"""Rules define how a concept changes activations. A rule returns a function of the activations and a weight.

A negative weight removes the concept, a positive weight adds it. B prompts, T tokens, D width, K latents.
"""

import dataclasses
import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.steering.concept import EncodedConcept, presence
from revelio_jax.steering.learned_concepts import LearnedConcept
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.transport import Transport

Weight = float | torch.Tensor
"""A factor on the change: one number, or one for each row of the batch, [B, 1, 1]."""
ChangeFunction = typing.Callable[[torch.Tensor, Weight], torch.Tensor]
"""Maps activations [B, T, D] in float32 and a weight to the tensor to add to them: [B, T, D] or [T, D]."""


@dataclasses.dataclass(frozen=True)
class Add:
    """Adds weight * v to any activations; v is [T, D], or [1, D] for all positions."""

    v_TD: torch.Tensor

    def __call__(self, x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        return weight * self.v_TD

    def split(self, widths: list[int]) -> list["Add"]:
        """Return one function for each hook point; ``widths`` are the widths of the hook points joined in D."""
        return [Add(v_TD.contiguous()) for v_TD in self.v_TD.split(widths, dim=-1)]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Multiplies latents [K] by 1 + weight; -1 removes them. Positions on which they do not fire are unchanged."""

    sae: Sae
    latents: torch.Tensor

    def __call__(self, x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        return weight * (self.sae.codes(x_BTD)[..., self.latents] @ self.sae.W_dec_FD[self.latents])


@dataclasses.dataclass(frozen=True)
class Set:
    """Sets a latent to a value at every position; a weight between 0 and 1 interpolates."""

    sae: Sae
    latent: int
    value: float

    def __call__(self, x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        z_BT1 = self.sae.codes(x_BTD)[..., self.latent, None]
        return weight * (self.value - z_BT1) * self.sae.W_dec_FD[self.latent]


@dataclasses.dataclass(frozen=True)
class Swap:
    """Adds weight * v [T, D]: a negative weight to prompts with the concept, a positive weight to all others.

    A prompt has the concept if its latents [K] sum to more than ``threshold`` at some position.
    """

    sae: Sae
    latents: torch.Tensor
    threshold: float
    v_TD: torch.Tensor

    def __call__(self, x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        has_concept_B11 = (presence(self.sae.codes(x_BTD), self.latents) > self.threshold)[:, None, None]
        weight = torch.as_tensor(weight, device=x_BTD.device)
        return weight * torch.where(weight < 0, has_concept_B11, ~has_concept_B11) * self.v_TD


@dataclasses.dataclass(frozen=True)
class Transported:
    """Adds a change that depends on the codes of each token, weight times, to prompts with the concept or to others.

    A negative weight removes the concept from prompts that have it; a positive weight adds it to all others. A prompt
    has the concept if its latents [K] sum to more than ``threshold`` at some position.
    """

    sae: Sae
    latents: torch.Tensor
    threshold: float
    transport: Transport

    def __call__(self, x_BTD: torch.Tensor, weight: Weight) -> torch.Tensor:
        codes_BTF = self.sae.codes(x_BTD)
        has_concept_B11 = (presence(codes_BTF, self.latents) > self.threshold)[:, None, None]
        weight = torch.as_tensor(weight, device=x_BTD.device)
        removed_BTD = torch.where(has_concept_B11, self.transport.removal(codes_BTF), 0.0)
        added_BTD = torch.where(has_concept_B11, 0.0, self.transport.addition(codes_BTF))
        return weight.abs() * torch.where(weight < 0, removed_BTD, added_BTD)


def paper(sae: Sae, concept: EncodedConcept) -> ChangeFunction:
    """Add W_dec ReLU(W_enc (h_c - b_dec) + b_enc), without top-k, as Concept Steerers (arXiv 2501.19066) do.

    h_c are the activations of the concept's own prompt, position by position.
    """
    return Add(sae.directions(concept.pre_codes))


def contrast(sae: Sae, concept: EncodedConcept) -> ChangeFunction:
    """Add W_dec ReLU(latents of the concept - latents of the empty prompt), both before top-k, position by position."""
    return Add(sae.directions(torch.relu(concept.pre_codes - concept.empty_pre_codes)))


def gated(sae: Sae, concept: EncodedConcept) -> ChangeFunction:
    """Scale the few latents of the prompt that belong to the concept.

    Strength -1 removes them. Prompts on which none of them fires are unchanged.
    """
    return Scale(sae, concept.learned.latents)


def swap(sae: Sae, concept: EncodedConcept) -> ChangeFunction:
    """Add W_dec (mean code of prompts with the concept - mean code of prompts without).

    Strength -1 replaces the mean code of the concept by the mean code without it, in prompts with the concept. This
    includes latents that the concept suppresses. Strength +1 does the opposite in prompts without the concept.
    """
    learned = concept.learned
    return Swap(sae, learned.latents, learned.threshold, sae.directions(learned.difference))


def transport(sae: Sae, concept: EncodedConcept) -> ChangeFunction:
    """Change each token as it changes between matched prompts with and without the concept.

    Strength -1 changes a prompt with the concept into its predicted match without it; +1 does the opposite in prompts
    without the concept. Raise InputError if the concept was not learned from labeled prompts at a text encoder.
    """
    learned = concept.learned
    if learned.transport is None:
        raise InputError(
            f"rule is 'transport', but {concept.text!r} has no change learned from labeled prompts; learn it with "
            "revelio learn at a hook point of a text encoder, or use another rule"
        )
    if (width := learned.transport.removal.of_positions_TD.shape[-1]) != sae.d:
        raise InputError(f"the learned concept {concept.text!r} is for width {width}, but this SAE has width {sae.d}")
    return Transported(sae, learned.latents, learned.threshold, learned.transport)


Rule = typing.Callable[[Sae, EncodedConcept], ChangeFunction]
RULES: dict[str, Rule] = {"paper": paper, "contrast": contrast, "gated": gated, "swap": swap, "transport": transport}
# Rules that add a fixed vector also steer the unconditional branch, in the opposite direction.
ON_BOTH_BRANCHES = ("paper", "contrast")
AUTO = "auto"
# Rules that need a change learned from labeled prompts.
FROM_LABELS = ("transport",)
# The rules that ``auto`` stands for, for learned concepts with and without a change, and for texts: the best on both
# miniatures, measured with ``revelio benchmark``; see docs/measurements/leaderboard.md.
WITH_CHANGE, FOR_LEARNED, FOR_TEXT = "transport", "swap", "contrast"


def resolve_rule(rule: str, learned: LearnedConcept | None) -> str:
    """Return the name of the rule for a text, with ``auto`` resolved. Raise InputError on an unknown rule.

    ``learned`` is the concept learned for the text, None without one.
    """
    check_rule(rule)
    if rule != AUTO:
        return rule
    if learned is None:
        return FOR_TEXT
    return WITH_CHANGE if learned.transport else FOR_LEARNED


def check_rule(rule: str) -> None:
    """Raise InputError if ``rule`` is neither ``auto`` nor the name of a rule."""
    if rule != AUTO and rule not in RULES:
        raise InputError(f"rule is {rule!r}; allowed: {', '.join((AUTO, *RULES))}")


def change_function(rule: str, sae: Sae, concept: EncodedConcept) -> ChangeFunction:
    """Return the function that changes activations by ``rule`` for ``concept``. Raise InputError on an unknown rule."""
    if rule not in RULES:
        raise InputError(f"rule is {rule!r}; allowed: {', '.join(RULES)}")
    return RULES[rule](sae, concept)
