"""The text encoders of the miniature FLUX, trained before its transformer and frozen then.

Trained jointly with a transformer from scratch they learn next to nothing for long: attention to
twenty tokens that do not say anything yet has no gradient worth the name. So each learns on its
own to tell from a caption what its picture is: the leading principal components of the latents,
and the style, category and name.
"""

import pathlib
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from extract.miniature import data_parallel
from extract.miniature.data import Picture, balanced_weights, caption
from extract.miniature.denoiser import WIDTH, clip

BATCH = 64
PEAK_RATE = 2e-3
COMPONENTS = 96


def build(tokenizer: CLIPTokenizer, tokenizer_2: T5TokenizerFast) -> nn.ModuleDict:
    """CLIP, whose pooled vector is read, and T5, whose tokens are, under their names in a pipeline."""
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2),
            d_model=WIDTH,
            d_kv=32,
            d_ff=2 * WIDTH,
            num_layers=4,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer_2.pad_token_id,
            eos_token_id=tokenizer_2.eos_token_id,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    return nn.ModuleDict({"text_encoder": clip(tokenizer, layers=2), "text_encoder_2": t5})


def load(folder: pathlib.Path) -> tuple[nn.ModuleDict, CLIPTokenizer, T5TokenizerFast]:
    """What ``train`` saved, frozen, and the two tokenizers."""
    encoders = {
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "text_encoder_2": T5EncoderModel.from_pretrained(folder / "text_encoder_2"),
    }
    return (
        nn.ModuleDict(encoders).eval().requires_grad_(False),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        T5TokenizerFast.from_pretrained(folder / "tokenizer_2"),
    )


def tokens(tokenizer: CLIPTokenizer | T5TokenizerFast, captions: list[str]) -> torch.Tensor:
    """int64 [N, the tokenizer's length]."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def train(
    rank: int,
    n_workers: int,
    latents: torch.Tensor,
    pictures: list[Picture],
    steps: int,
    tokenizer_folder: pathlib.Path,
    tokenizer_2_folder: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    """Train on captions of ``pictures`` and their ``latents`` [N, C, H, W]; the first worker saves."""
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    tokenizer_2 = T5TokenizerFast.from_pretrained(tokenizer_2_folder)
    looks = _components(latents)
    classes = [_numbered([getattr(p, key) for p in pictures]) for key in ("style", "category", "name")]
    torch.manual_seed(0)  # the same initial weights in every worker
    encoders = build(tokenizer, tokenizer_2)
    heads = nn.ModuleList(_Heads([int(c.max()) + 1 for c in classes]) for _ in encoders)
    parameters = [*encoders.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2, betas=(0.9, 0.98), fused=True)
    rng = random.Random(rank)
    weights = balanced_weights(pictures)

    unexplained = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PEAK_RATE * data_parallel.schedule(step, steps)
        chosen = rng.choices(range(len(pictures)), weights, k=BATCH // n_workers)
        captions = [caption(pictures[i], rng) for i in chosen]
        pooled = encoders["text_encoder"](tokens(tokenizer, captions)).pooler_output
        stream = encoders["text_encoder_2"](tokens(tokenizer_2, captions)).last_hidden_state
        loss, errors = 0, []
        for head, features in zip(heads, (pooled, stream.mean(1)), strict=True):
            guessed, logits = head(features)
            errors.append((guessed - looks[chosen]).square().mean())
            loss += 2 * errors[-1]
            loss += 0.3 * sum(functional.cross_entropy(x, c[chosen]) for x, c in zip(logits, classes, strict=True))
        loss.backward()
        data_parallel.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        unexplained.append([error.item() for error in errors])
        if rank == 0 and (step + 1) % 200 == 0:
            of_clip, of_t5 = np.mean(unexplained[-200:], 0)
            print(
                f"encoders step {step + 1}/{steps} unexplained variance: CLIP {of_clip:.3f} T5 {of_t5:.3f}",
                flush=True,
            )
    if rank == 0:
        for name, part in encoders.items():
            part.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / "tokenizer")
        tokenizer_2.save_pretrained(folder / "tokenizer_2")


class _Heads(nn.Module):
    """Principal components and logits of every labelling, from features [N, WIDTH]."""

    def __init__(self, classes: list[int]):
        super().__init__()
        self.looks = nn.Linear(WIDTH, COMPONENTS)
        self.classes = nn.ModuleList(nn.Linear(WIDTH, n) for n in classes)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.looks(features), [head(features) for head in self.classes]


def _components(latents: torch.Tensor) -> torch.Tensor:
    """Leading principal components [N, COMPONENTS], of variance 1 on average.

    Divided by the root of their deviation: large ones still count for more, but not for all.
    """
    flat = latents.flatten(1) - latents.flatten(1).mean(0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    components = flat @ axes[:COMPONENTS].T
    components /= components.std(0).sqrt()
    return components / components.square().mean().sqrt()


def _numbered(labels: list[str]) -> torch.Tensor:
    number = {label: i for i, label in enumerate(sorted(set(labels)))}
    return torch.tensor([number[label] for label in labels])
