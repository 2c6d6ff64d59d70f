"""How a concept changes activations. Each rule gives the change for strength 1, to be scaled.

A negative strength removes the concept, a positive one adds it.
"""

import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.steering.concept import Concept
from revelio_jax.steering.folder import Sae

Change = typing.Callable[[torch.Tensor], torch.Tensor]
"""Activations [B, T, D] in float32 to their change [B, T, D] or [T, D] at strength 1."""


def paper(sae: Sae, concept: Concept) -> Change:
    """Concept Steerers: W_dec ReLU(W_enc (h_c - b) + b_enc), without top-k, at every position."""
    v_TD = sae.directions(concept.codes)
    return lambda x_BTD: v_TD


def contrast(sae: Sae, concept: Concept) -> Change:
    """The concept's code minus the empty prompt's, where positive: what the concept itself adds."""
    v_TD = sae.directions(torch.relu(concept.codes - concept.empty))
    return lambda x_BTD: v_TD


def gated(sae: Sae, concept: Concept) -> Change:
    """Scale the prompt's own latents, those few that belong to the concept.

    Strength -1 takes them out; prompts in which they do not fire are left alone.
    """
    W_dec_KD = sae.W_dec_FD[concept.latents]

    def change(x_BTD: torch.Tensor) -> torch.Tensor:
        return sae.codes(x_BTD)[..., concept.latents] @ W_dec_KD

    return change


RULES = {"paper": paper, "contrast": contrast, "gated": gated}


def change_of(rule: str, sae: Sae, concept: Concept) -> Change:
    """The change that ``rule`` makes for ``concept``. Raises InputError on an unknown rule."""
    if rule not in RULES:
        raise InputError(f"rule is {rule!r}; allowed: {', '.join(RULES)}")
    return RULES[rule](sae, concept)
