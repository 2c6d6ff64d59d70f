"""Which latents a text uses, read off its own prompt."""

import typing

import torch

from revelio_jax import sites
from revelio_jax.errors import InputError
from revelio_jax.steering.concept import hidden_states
from revelio_jax.steering.folder import Sae


@torch.inference_mode()
def latents_for(
    pipe: typing.Any, site: str, sae: Sae, text: str, top: int = 20
) -> list[dict[str, typing.Any]]:
    """The ``top`` latents that fire more on ``text`` than on the empty prompt, by how much more.

    Rows are {latent, value, empty, position, token}: the largest value over the prompt's positions, that
    over the empty prompt's, and the position and token where the prompt's is.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise InputError(f"top is {top!r}; it must be a count of latents")
    if sites.is_denoiser_site(site):
        raise InputError(
            f"{site} is a site of the denoiser, which sees no prompt alone; latents_for reads text"
        )
    codes_TF, empty_TF = sae.codes(hidden_states(pipe, site, [text, ""]))
    (values_F, positions_F), empty_F = codes_TF.max(0), empty_TF.amax(0)
    more_F = values_F - empty_F
    order = more_F.argsort(descending=True, stable=True)[:top]
    tokens = _tokens(pipe, site, text, len(codes_TF))
    return [
        {
            "latent": i,
            "value": float(values_F[i]),
            "empty": float(empty_F[i]),
            "position": int(positions_F[i]),
            "token": tokens[int(positions_F[i])],
        }
        for i in order[more_F[order] > 0].tolist()
    ]


def _tokens(pipe: typing.Any, site: str, text: str, positions: int) -> list[str]:
    """The prompt's tokens as the tokenizer spells them, one for each position."""
    component = sites.resolve(pipe, site.partition("+")[0]).component  # joined encoders share positions
    tokenizer = getattr(pipe, component.replace("text_encoder", "tokenizer"))
    ids = tokenizer(text, padding="max_length", max_length=positions, truncation=True).input_ids
    return tokenizer.convert_ids_to_tokens(ids)
