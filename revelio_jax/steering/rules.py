"""How a concept changes activations. Each rule gives a function of the activations and a strength.

A negative strength removes the concept, a positive one adds it.
"""

import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.steering.concept import Concept, presence
from revelio_jax.steering.folder import Sae

Change = typing.Callable[[torch.Tensor, float], torch.Tensor]
"""Activations [B, T, D] in float32 and a strength to the change [B, T, D] or [T, D]."""


def paper(sae: Sae, concept: Concept) -> Change:
    """Concept Steerers: W_dec ReLU(W_enc (h_c - b) + b_enc), without top-k, at every position."""
    v_TD = sae.directions(concept.codes)
    return lambda x_BTD, strength: strength * v_TD


def contrast(sae: Sae, concept: Concept) -> Change:
    """The concept's code minus the empty prompt's, where positive: what the concept itself adds."""
    v_TD = sae.directions(torch.relu(concept.codes - concept.empty))
    return lambda x_BTD, strength: strength * v_TD


def gated(sae: Sae, concept: Concept) -> Change:
    """Scale the prompt's own latents, those few that belong to the concept.

    Strength -1 takes them out; prompts in which they do not fire are left alone.
    """
    latents = concept.learned.latents
    W_dec_KD = sae.W_dec_FD[latents]
    return lambda x_BTD, strength: strength * (sae.codes(x_BTD)[..., latents] @ W_dec_KD)


def swap(sae: Sae, concept: Concept) -> Change:
    """Move a prompt by the mean difference between prompts with the concept and prompts without.

    Strength -1 swaps the usual code of the concept for the usual code without it (latents that the
    concept suppresses among them) in prompts that hold it; +1 the other way in prompts that do not.
    """
    v_TD = sae.directions(concept.learned.difference.to(sae.W_dec_FD.device))

    def change(x_BTD: torch.Tensor, strength: float) -> torch.Tensor:
        holds_B = presence(sae.codes(x_BTD), concept.learned.latents) > concept.learned.threshold
        moved_B = holds_B if strength < 0 else ~holds_B
        return strength * moved_B[:, None, None] * v_TD

    return change


RULES = {"paper": paper, "contrast": contrast, "gated": gated, "swap": swap}
# Those that add a fixed vector also steer the negative prompt, by the opposite amount.
ON_BOTH_BRANCHES = ("paper", "contrast")


def change_of(rule: str, sae: Sae, concept: Concept) -> Change:
    """The change that ``rule`` makes for ``concept``. Raises InputError on an unknown rule."""
    if rule not in RULES:
        raise InputError(f"rule is {rule!r}; allowed: {', '.join(RULES)}")
    return RULES[rule](sae, concept)
