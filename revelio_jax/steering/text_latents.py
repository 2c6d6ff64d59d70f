"""List the latents that fire on a text: on its own prompt, or on sampled images of it."""

import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.steering.concept import EncodedConcept, hidden_states, tokenize, tokenizer_of
from revelio_jax.steering.sae import Sae


class TextLatent(typing.TypedDict):
    """A latent that fires on a text.

    ``value`` and ``empty`` are its largest values on the prompt and on the empty prompt; ``position`` and ``token`` are
    where ``value`` occurs. At a hook point of the denoiser, ``value`` and ``empty`` are means over sampled images,
    ``position`` is -1 and ``token`` is "".
    """

    latent: int
    value: float
    empty: float
    position: int
    token: str


@torch.inference_mode()
def latents_for(pipe: typing.Any, site: str, sae: Sae, text: str, top: int = 20) -> list[TextLatent]:
    """Return the ``top`` latents that fire more on ``text`` than on the empty prompt, largest difference first.

    Raise InputError if ``top`` is not a positive whole number.
    """
    codes_TF, empty_TF = sae.codes(hidden_states(pipe, site, [text, ""]))
    (values_F, positions_F), empty_F = codes_TF.max(0), empty_TF.amax(0)
    tokens = _tokens(pipe, site, text, len(codes_TF))
    rows: list[TextLatent] = []
    for latent, value, empty in _excess(values_F, empty_F, top):
        position = int(positions_F[latent])
        rows.append({"latent": latent, "value": value, "empty": empty, "position": position, "token": tokens[position]})
    return rows


def sampled_latents(concept: EncodedConcept, top: int = 20) -> list[TextLatent]:
    """Return the latents of :func:`latents_for` at a hook point of the denoiser, from an encoded text.

    Raise InputError if ``top`` is not a positive whole number.
    """
    rows = _excess(concept.pre_codes.mean(0), concept.empty_pre_codes.mean(0), top)
    return [
        {"latent": latent, "value": value, "empty": empty, "position": -1, "token": ""} for latent, value, empty in rows
    ]


def _excess(values_F: torch.Tensor, empty_F: torch.Tensor, top: typing.Any) -> list[tuple[int, float, float]]:
    """Return number, value and value on the empty prompt of the ``top`` latents with the largest difference."""
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise InputError(f"top is {top!r}; it must be a positive whole number of latents")
    excess_F = values_F - empty_F
    order = excess_F.argsort(descending=True, stable=True)[:top]
    return [(i, float(values_F[i]), float(empty_F[i])) for i in order[excess_F[order] > 0].tolist()]


def _tokens(pipe: typing.Any, site: str, text: str, positions: int) -> list[str]:
    """Return the prompt's tokens as the tokenizer spells them, one for each position."""
    component = hook_points.resolve(pipe, site.partition("+")[0]).component  # joined encoders share positions
    ids_1T = tokenize(pipe, component, [text], positions).input_ids
    return tokenizer_of(pipe, component).convert_ids_to_tokens(ids_1T[0].tolist())
