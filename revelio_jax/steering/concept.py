"""What a concept is to a steerer: latents of its own prompt, by the text encoder alone, once."""

import dataclasses
import typing

import torch

from revelio_jax import sites
from revelio_jax.steering.folder import Sae
from revelio_jax.steering.learned import Learned

GATE = 0.3  # share of the concept's usual strength from which on a prompt is said to hold it


@dataclasses.dataclass(frozen=True)
class Concept:
    """A concept in latents.

    ``codes`` and ``empty`` [T, F] are the ReLU latents, without top-k, of the concept's own prompt and
    of the empty prompt, position by position. ``learned`` is taken from those two prompts alone where
    there are no labelled ones.
    """

    text: str
    codes: torch.Tensor
    empty: torch.Tensor
    learned: Learned


@torch.inference_mode()
def hidden_states(pipe: typing.Any, site_name: str, prompts: list[str], batch_size: int = 64) -> torch.Tensor:
    """Activations [prompts, T, D] of a text-encoder site, float32, on the encoder's device."""
    site = sites.resolve(pipe, site_name)
    encoder = getattr(pipe, site.component)
    tokenizer = getattr(pipe, site.component.replace("text_encoder", "tokenizer"))
    with sites.captured(site) as parts:
        for start in range(0, len(prompts), batch_size):
            tokens = tokenizer(
                prompts[start : start + batch_size],
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            encoder(tokens.input_ids.to(encoder.device))
    return torch.cat(parts).float()


def encode_concept(
    pipe: typing.Any, site_name: str, sae: Sae, text: str, learned: Learned | None = None
) -> Concept:
    """Encode a concept's prompt and the empty prompt."""
    of_text, of_empty = hidden_states(pipe, site_name, [text, ""])
    if learned is None:
        codes, empty = sae.codes(of_text), sae.codes(of_empty)
        latents = own_latents(codes, empty)
        threshold = GATE * float(presence(codes[None], latents))
        learned = Learned(latents, codes - empty, threshold)
    return Concept(text, sae.pre_codes(of_text), sae.pre_codes(of_empty), learned)


def presence(codes: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """How strongly each prompt holds a concept: [B] from codes [B, T, F] and its latents [K]."""
    return codes[..., latents].sum(-1).amax(-1)


def own_latents(codes: torch.Tensor, empty: torch.Tensor, most: int = 24, ratio: float = 4.0) -> torch.Tensor:
    """Latents [K] whose largest value on the concept's prompt is ``ratio`` x that on the empty one.

    ``codes`` and ``empty`` are top-k latents [T, F]; at most ``most`` are returned, strongest first.
    """
    with_concept, without = codes.amax(0), empty.amax(0)
    strength = torch.where(with_concept >= ratio * without, with_concept - without, 0.0)
    order = strength.argsort(descending=True)[:most]
    return order[strength[order] > 0]
