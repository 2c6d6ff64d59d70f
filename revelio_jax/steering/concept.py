"""Encode a text as a concept: the latents of its own prompt, computed with the text encoder alone."""

import contextvars
import dataclasses
import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points, hooks
from revelio_jax.pipelines.devices import execution_device
from revelio_jax.pipelines.families.base import LONGEST_PROMPT
from revelio_jax.steering.learned_concepts import LearnedConcept
from revelio_jax.steering.sae import Sae

_reading = contextvars.ContextVar("reading", default=False)
GATE = 0.3  # a prompt has a concept if its presence is above this share of the concept's usual presence


@dataclasses.dataclass(frozen=True)
class EncodedConcept:
    """A concept in latents.

    ``pre_codes`` and ``empty_pre_codes`` [T, F] are the latents before top-k, position by position, on the concept's
    own prompt and on the empty prompt. Without labeled prompts, ``learned`` comes from these two prompts.
    """

    text: str
    pre_codes: torch.Tensor
    empty_pre_codes: torch.Tensor
    learned: LearnedConcept

    def to(self, device: torch.device) -> "EncodedConcept":
        """Return the concept on a device."""
        pre_codes, empty_pre_codes = self.pre_codes.to(device), self.empty_pre_codes.to(device)
        return EncodedConcept(self.text, pre_codes, empty_pre_codes, self.learned.to(device))


@torch.no_grad()
def hidden_states(
    pipe: typing.Any,
    site_name: str,
    prompts: list[str],
    batch_size: int = 64,
    tokens: int | None = None,
) -> torch.Tensor:
    """Return activations [prompts, T, D] of a text encoder's hook point, float32, on the encoder's device.

    Hook points joined by + are concatenated in D. T is ``tokens``, by default the pipeline's prompt length.
    """
    hidden: list[torch.Tensor] = []
    for point in hook_points.resolve_joined(pipe, site_name):
        # Run eagerly: compiled code would lack the capturing hook, or would keep it after the block.
        with hooks.capture(point) as outputs, torch.compiler.set_stance("force_eager"):
            for start in range(0, len(prompts), batch_size):
                run_encoder(pipe, point.component, prompts[start : start + batch_size], tokens)
        hidden.append(torch.cat(outputs).float())
    return torch.cat([x.to(hidden[0].device) for x in hidden], dim=-1)


def run_encoder(pipe: typing.Any, component: str, prompts: list[str], tokens: int | None = None) -> typing.Any:
    """Return the output of a text encoder for prompts, tokenized as the pipeline does."""
    encoder, batch = getattr(pipe, component), tokenize(pipe, component, prompts, tokens)
    device = execution_device(encoder)
    mask = {"attention_mask": batch.attention_mask.to(device)} if is_masked(encoder) else {}
    token = _reading.set(True)
    try:
        return encoder(batch.input_ids.to(device), **mask)
    finally:
        _reading.reset(token)


def tokenize(pipe: typing.Any, component: str, prompts: list[str], tokens: int | None = None) -> typing.Any:
    """Return ``input_ids`` and ``attention_mask`` of prompts, int64 [prompts, T], as the pipeline tokenizes them.

    Prompts are truncated and padded to ``tokens``, by default to the pipeline's prompt length.
    """
    tokenizer = tokenizer_of(pipe, component)
    return tokenizer(
        converted(pipe, prompts, tokenizer),
        padding="max_length",
        max_length=tokens or min(LONGEST_PROMPT, tokenizer.model_max_length),
        truncation=True,
        return_tensors="pt",
    )


def is_reading() -> bool:
    """Return whether :func:`run_encoder` runs an encoder now, to read concepts instead of to generate an image."""
    return _reading.get()


def converted(pipe: typing.Any, prompts: list[str], tokenizer: typing.Any) -> list[str]:
    """Return prompts with the tokens of textual inversions that have several vectors written out."""
    convert = getattr(pipe, "maybe_convert_prompt", None)
    return convert(prompts, tokenizer) if convert else prompts


def tokenizer_of(pipe: typing.Any, component: str) -> typing.Any:
    """Return the tokenizer of a text encoder."""
    return getattr(pipe, component.replace("text_encoder", "tokenizer"))


def is_masked(encoder: typing.Any) -> bool:
    """Return whether pipelines pass the attention mask to an encoder; its config decides."""
    return getattr(encoder.config, "use_attention_mask", False)


def encode_concept(
    pipe: typing.Any,
    site_name: str,
    sae_on: typing.Callable[[torch.device], Sae],
    text: str,
    learned: LearnedConcept | None = None,
    tokens: int | None = None,
) -> EncodedConcept:
    """Encode a text and the empty prompt with the SAE, on the text encoder's device.

    Raise InputError if ``learned`` is for another prompt length.
    """
    text_TD, empty_TD = hidden_states(pipe, site_name, [text, ""], tokens=tokens)
    sae = sae_on(text_TD.device)
    if learned is None:
        codes_TF, empty_codes_TF = sae.codes(text_TD), sae.codes(empty_TD)
        latents = own_latents(codes_TF, empty_codes_TF)
        threshold = GATE * float(presence(codes_TF[None], latents))
        learned = LearnedConcept(latents, codes_TF - empty_codes_TF, threshold)
    elif (length := len(learned.difference)) != len(text_TD):
        raise InputError(
            f"the learned concept {text!r} is for prompts of {length} tokens, but this prompt has {len(text_TD)}; pass "
            f"max_sequence_length={length}, or learn the concept again"
        )
    return EncodedConcept(text, sae.pre_codes(text_TD), sae.pre_codes(empty_TD), learned.to(text_TD.device))


def presence(codes_BTF: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return the presence of a concept in each prompt: [B], from codes [B, T, F] and the concept's latents [K].

    The presence is the sum of these latents at the position with the largest sum.
    """
    return codes_BTF[..., latents].sum(-1).amax(-1)


def own_latents(
    codes_TF: torch.Tensor, empty_codes_TF: torch.Tensor, most: int = 24, ratio: float = 4.0
) -> torch.Tensor:
    """Return the latents [K] of a concept, at most ``most``, strongest first.

    Their largest value on the concept's prompt is at least ``ratio`` times the largest value on the empty prompt.
    The codes are those after top-k, [T, F].
    """
    concept_F, empty_F = codes_TF.amax(0), empty_codes_TF.amax(0)
    excess_F = torch.where(concept_F >= ratio * empty_F, concept_F - empty_F, 0.0)
    order = excess_F.argsort(descending=True)[:most]
    return order[excess_F[order] > 0]
