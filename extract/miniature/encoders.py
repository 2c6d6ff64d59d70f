"""The text encoders of the miniature FLUX, trained before its transformer and then frozen.

Joint training with the transformer makes little progress for a long time: attention to twenty tokens without
information has almost no gradient. So each encoder is trained separately to predict properties of an image from its
caption: the leading principal components of the latents, and the style, category and name.
"""

import pathlib
import random
import typing

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from extract.miniature import data_parallel
from extract.miniature.data import Emoji, balanced_weights, caption
from extract.miniature.denoiser import WIDTH, clip

BATCH = 64
PEAK_RATE = 2e-3
COMPONENTS = 96


def build(tokenizer: CLIPTokenizer, tokenizer_2: T5Tokenizer) -> nn.ModuleDict:
    """Return CLIP and T5 with new weights, named as in the pipeline.

    The transformer reads the pooled vector of CLIP and the tokens of T5.
    """
    marks: typing.Any = tokenizer_2  # its declared types allow more than one id
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
            pad_token_id=marks.pad_token_id,
            eos_token_id=marks.eos_token_id,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    return nn.ModuleDict({"text_encoder": clip(tokenizer, layers=2), "text_encoder_2": t5})


def load(folder: pathlib.Path) -> tuple[nn.ModuleDict, CLIPTokenizer, T5Tokenizer]:
    """Return the encoders that :func:`train` saved, frozen, and the two tokenizers."""
    encoders = {
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "text_encoder_2": T5EncoderModel.from_pretrained(folder / "text_encoder_2"),
    }
    return (
        nn.ModuleDict(encoders).eval().requires_grad_(False),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        T5Tokenizer.from_pretrained(folder / "tokenizer_2"),
    )


def tokens(tokenizer: CLIPTokenizer | T5Tokenizer, captions: list[str]) -> torch.Tensor:
    """Return token ids, int64 [N, length], padded to the tokenizer's length."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def train(
    rank: int,
    n_workers: int,
    latents: torch.Tensor,
    emojis: list[Emoji],
    steps: int,
    tokenizer_folder: pathlib.Path,
    tokenizer_2_folder: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    """Train on captions of ``emojis`` and their ``latents`` [N, C, H, W]. The first worker saves the encoders."""
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    tokenizer_2 = T5Tokenizer.from_pretrained(tokenizer_2_folder)
    components = _components(latents)
    classes = [_class_numbers([getattr(emoji, key) for emoji in emojis]) for key in ("style", "category", "name")]
    torch.manual_seed(0)  # same initial weights in every worker
    encoders = build(tokenizer, tokenizer_2)
    heads = nn.ModuleList(_Heads([int(c.max()) + 1 for c in classes]) for _ in encoders)
    parameters = [*encoders.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2, betas=(0.9, 0.98), fused=True)
    rng = random.Random(rank)
    weights = balanced_weights(emojis)

    unexplained = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PEAK_RATE * data_parallel.schedule(step, steps)
        chosen = rng.choices(range(len(emojis)), weights, k=BATCH // n_workers)
        captions = [caption(emojis[i], rng) for i in chosen]
        pooled = encoders["text_encoder"](tokens(tokenizer, captions)).pooler_output
        stream = encoders["text_encoder_2"](tokens(tokenizer_2, captions)).last_hidden_state
        loss, errors = torch.zeros(()), []
        for head, features in zip(heads, (pooled, stream.mean(1)), strict=True):
            predicted, logits = head(features)
            errors.append((predicted - components[chosen]).square().mean())
            loss += 2 * errors[-1]
            loss += 0.3 * sum(functional.cross_entropy(x, c[chosen]) for x, c in zip(logits, classes, strict=True))
        loss.backward()
        data_parallel.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        unexplained.append([error.item() for error in errors])
        if rank == 0 and (step + 1) % 200 == 0:
            clip_error, t5_error = np.mean(unexplained[-200:], 0)
            print(
                f"encoders step {step + 1}/{steps} unexplained variance: CLIP {clip_error:.3f} T5 {t5_error:.3f}",
                flush=True,
            )
    if rank == 0:
        saved: typing.Any = encoders
        for name, part in saved.items():
            part.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / "tokenizer")
        tokenizer_2.save_pretrained(folder / "tokenizer_2")


class _Heads(nn.Module):
    """Predict principal components, and logits of each label column, from features [N, WIDTH]."""

    def __init__(self, classes: list[int]):
        super().__init__()
        self.components = nn.Linear(WIDTH, COMPONENTS)
        self.classes = nn.ModuleList(nn.Linear(WIDTH, n) for n in classes)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.components(features), [head(features) for head in self.classes]


def _components(latents: torch.Tensor) -> torch.Tensor:
    """Return the leading principal components [N, COMPONENTS], scaled to a mean square of 1.

    Each component is first divided by the square root of its standard deviation. Large components then still have more
    weight, but do not dominate.
    """
    flat = latents.flatten(1) - latents.flatten(1).mean(0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    components = flat @ axes[:COMPONENTS].T
    components /= components.std(0).sqrt()
    return components / components.square().mean().sqrt()


def _class_numbers(labels: list[str]) -> torch.Tensor:
    number = {label: i for i, label in enumerate(sorted(set(labels)))}
    return torch.tensor([number[label] for label in labels])
