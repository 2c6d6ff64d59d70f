"""What a concept is to a steerer: latents of its own prompt, by the text encoder alone, once."""

import dataclasses
import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.steering.learned_concepts import Learned
from revelio_jax.steering.sae import Sae

GATE = 0.3  # share of the concept's usual strength from which on a prompt is said to hold it
LONGEST = 512  # tokens of a prompt at most, where neither tokenizer nor call says less


@dataclasses.dataclass(frozen=True)
class EncodedConcept:
    """A concept in latents.

    ``codes`` and ``empty`` [T, F] are the ReLU latents, without top-k, of the concept's own prompt and
    of the empty prompt, position by position. ``learned`` is taken from those two prompts alone where
    there are no labelled ones.
    """

    text: str
    codes: torch.Tensor
    empty: torch.Tensor
    learned: Learned

    def to(self, device: torch.device) -> "EncodedConcept":
        codes, empty = self.codes.to(device), self.empty.to(device)
        return EncodedConcept(self.text, codes, empty, self.learned.to(device))


@torch.no_grad()
def hidden_states(
    pipe: typing.Any,
    site_name: str,
    prompts: list[str],
    batch_size: int = 64,
    tokens: int | None = None,
) -> torch.Tensor:
    """Activations [prompts, T, D] of a text-encoder site, float32, on the device that they are made on.

    Sites joined by + are side by side in D. T is ``tokens``, or as many as the pipeline takes by itself.
    """
    parts = []
    for site in hook_points.resolve_joined(pipe, site_name):
        # Compiled code would not see the hook that captures, or would keep it.
        with hook_points.captured(site) as outputs, torch.compiler.set_stance("force_eager"):
            for start in range(0, len(prompts), batch_size):
                run_encoder(pipe, site.component, prompts[start : start + batch_size], tokens)
        parts.append(torch.cat(outputs).float())
    return torch.cat([part.to(parts[0].device) for part in parts], dim=-1)


def run_encoder(pipe: typing.Any, component: str, prompts: list[str], tokens: int | None = None) -> typing.Any:
    """What a text encoder returns for prompts that are made tokens as the pipeline does it."""
    encoder = getattr(pipe, component)
    tokenizer = tokenizer_of(pipe, component)
    if convert := getattr(pipe, "maybe_convert_prompt", None):  # textual inversion
        prompts = convert(prompts, tokenizer)
    got = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokens or min(LONGEST, tokenizer.model_max_length),
        truncation=True,
        return_tensors="pt",
    )
    device = execution_device(encoder)
    mask = {"attention_mask": got.attention_mask.to(device)} if is_masked(encoder) else {}
    return encoder(got.input_ids.to(device), **mask)


def tokenizer_of(pipe: typing.Any, component: str) -> typing.Any:
    return getattr(pipe, component.replace("text_encoder", "tokenizer"))


def is_masked(encoder: typing.Any) -> bool:
    """Whether pipelines tell an encoder of its padding: only where its config asks for it."""
    return getattr(encoder.config, "use_attention_mask", False)


def execution_device(module: torch.nn.Module) -> torch.device:
    """Where a module computes; under offloading its weights are elsewhere, or on meta."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return next(module.parameters()).device


def encode_concept(
    pipe: typing.Any,
    site_name: str,
    sae_on: typing.Callable[[torch.device], Sae],
    text: str,
    learned: Learned | None = None,
    tokens: int | None = None,
) -> EncodedConcept:
    """Encode a concept's prompt and the empty prompt, by the SAE on the device that they are on."""
    of_text, of_empty = hidden_states(pipe, site_name, [text, ""], tokens=tokens)
    sae = sae_on(of_text.device)
    if learned is None:
        codes, empty = sae.codes(of_text), sae.codes(of_empty)
        latents = own_latents(codes, empty)
        threshold = GATE * float(presence(codes[None], latents))
        learned = Learned(latents, codes - empty, threshold)
    elif len(learned.difference) != len(of_text):
        raise InputError(
            f"what was learned of {text!r} is for prompts of {len(learned.difference)} tokens, these have "
            f"{len(of_text)}; pass max_sequence_length={len(learned.difference)}, or learn it again"
        )
    codes, empty = sae.pre_codes(of_text), sae.pre_codes(of_empty)
    return EncodedConcept(text, codes, empty, learned.to(of_text.device))


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
