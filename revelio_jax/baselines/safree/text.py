"""Pooled embeddings of the concept's phrases and of prompts without one of their tokens."""

import typing
from collections.abc import Sequence

import torch

from revelio_jax.baselines.settings import PAPER
from revelio_jax.pipelines.families import family_of


class PooledText:
    """The text encoder of a pipeline whose pooled vectors have the width of its token embeddings.

    It is the only encoder of Stable Diffusion, and the second one of SDXL, as in the released code. ``columns`` are the
    columns of the pipeline's prompt embeddings that come from it.
    """

    def __init__(self, pipe: typing.Any):
        pooled = family_of(pipe).pooled
        component = pooled.component if pooled else "text_encoder"
        self.pipe, self.is_projected = pipe, pooled is not None
        self.encoder = getattr(pipe, component)
        self.tokenizer = getattr(pipe, component.replace("text_encoder", "tokenizer"))
        first = pipe.text_encoder.config.hidden_size if pooled else 0
        self.columns = slice(first, first + self.encoder.config.hidden_size)

    @property
    def has_one_width(self) -> bool:
        """Return whether pooled vectors have the width of token embeddings."""
        return not self.is_projected or self.encoder.config.projection_dim == self.encoder.config.hidden_size

    def phrases(self, phrases: Sequence[str]) -> torch.Tensor:
        """Return the pooled vector of each phrase, float64 [phrases, D]."""
        return torch.cat([self._pooled(self.tokens(phrase)[None]) for phrase in phrases])

    def without_each_token(self, prompt: str, mode: str) -> torch.Tensor:
        """Return the pooled vectors of a prompt without one of its N tokens each, float64 [N, D].

        In mode paper the token is left out, and in mode released the token 0 replaces it.
        """
        tokens = self.tokens(prompt)
        count = len(tokens) - 2  # without begin and end
        if not count:
            return torch.zeros(0, self.columns.stop - self.columns.start, dtype=torch.float64)
        if mode == PAPER:
            rows = torch.stack([torch.cat([tokens[: i + 1], tokens[i + 2 :]]) for i in range(count)])
        else:
            rows = tokens.repeat(count, 1)
            rows[range(count), range(1, count + 1)] = 0
        return self._pooled(rows)

    def tokens(self, prompt: str) -> torch.Tensor:
        """Return the token ids of a prompt with begin and end but without padding, int64 [T]."""
        convert = getattr(self.pipe, "maybe_convert_prompt", None)  # textual inversions
        text = convert(prompt, self.tokenizer) if convert else prompt
        return self.tokenizer(text, truncation=True, return_tensors="pt").input_ids[0]

    def _pooled(self, ids_NT: torch.Tensor) -> torch.Tensor:
        output = self.encoder(ids_NT.to(self.pipe._execution_device))
        return (output.text_embeds if self.is_projected else output.pooler_output).cpu().double()
