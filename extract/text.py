"""Text encoders alone: tokens of prompts, and the activations of several sites in one forward pass."""

import contextlib
import dataclasses
import typing

import numpy as np
import tensorstore as ts
import torch

from extract.pipelines import DTYPES, TextEncoder
from revelio_jax import sites
from revelio_jax.config import Extract
from revelio_jax.sites import Site

# What a token is. CLIP pads with its end marker, so only the first one ends the prompt.
BOS, CONTENT, EOS, PADDING = range(4)
KEPT = {
    "all": (BOS, CONTENT, EOS, PADDING),
    "no_padding": (BOS, CONTENT, EOS),
    "content": (CONTENT,),
}


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids and attention mask int64 [sample, position], and what each token is, int8."""

    ids: np.ndarray
    mask: np.ndarray
    kinds: np.ndarray

    def __getitem__(self, samples: slice) -> "Tokens":
        return Tokens(self.ids[samples], self.mask[samples], self.kinds[samples])

    def kept(self, positions: str) -> np.ndarray:
        """bool [sample, position]: the positions that config.extract.positions asks for."""
        return np.isin(self.kinds, KEPT[positions])


def tokenise(encoder: TextEncoder, prompts: list[str]) -> Tokens:
    """Tokens as the pipeline makes them: cut and padded to the tokenizer's length."""
    tokenizer = encoder.tokenizer
    # A tokenizer without a length says 1e30; the encoder's own positions, or T5's 512, bound it.
    length = min(tokenizer.model_max_length, getattr(encoder.model.config, "max_position_embeddings", 512))
    got = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="np")
    ids = got["input_ids"].astype(np.int64)
    return Tokens(ids, got["attention_mask"].astype(np.int64), _kinds(ids, tokenizer))


def _kinds(ids: np.ndarray, tokenizer: typing.Any) -> np.ndarray:
    position = np.arange(ids.shape[1])
    is_end = ids == tokenizer.eos_token_id
    end = np.where(is_end.any(1), is_end.argmax(1), ids.shape[1])[:, None]
    kinds = np.where(position < end, CONTENT, np.where(position == end, EOS, PADDING)).astype(np.int8)
    if tokenizer.bos_token_id is not None:  # T5 has none
        kinds[:, 0] = np.where(ids[:, 0] == tokenizer.bos_token_id, BOS, kinds[:, 0])
    return kinds


class _LastSiteReached(Exception):
    """Ends a forward pass: no later layer is wanted."""


@torch.inference_mode()
def activations(
    encoder: TextEncoder, wanted: list[Site], tokens: Tokens, dtype: str
) -> dict[str, np.ndarray]:
    """Activations [sample, position, d] of every wanted site, in one pass that ends after the last.

    ``dtype`` is that of the result (bfloat16 as TensorStore has it). The pipelines give their text
    encoders no attention mask unless the encoder's config asks for one; neither is one given here.
    """
    device = next(encoder.model.parameters()).device
    arguments = {"input_ids": torch.from_numpy(tokens.ids).to(device)}
    if getattr(encoder.model.config, "use_attention_mask", False):
        arguments["attention_mask"] = torch.from_numpy(tokens.mask).to(device)
    found: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for site in wanted:

            def keep(hidden: torch.Tensor, name: str = site.name) -> None:
                found[name] = hidden.to(DTYPES[dtype])
                if len(found) == len(wanted):
                    raise _LastSiteReached

            hooks.callback(sites.hook(site, keep).remove)
        with contextlib.suppress(_LastSiteReached):
            encoder.model(**arguments)
    return {site.name: _numpy(found[site.name]) for site in wanted}


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has no such dtype of its own
        return tensor.view(torch.int16).numpy().view(ts.bfloat16.numpy_dtype)
    return tensor.numpy()


def rows(
    encoder: TextEncoder, wanted: list[Site], tokens: Tokens, samples: range, extract: Extract
) -> typing.Iterator[tuple[int, dict[str, dict[str, np.ndarray]]]]:
    """Kept rows of the samples numbered ``samples``, a batch at a time.

    Yields how many samples the batch had and, per site, ``activations`` [rows, d] and int32
    ``sample``, ``position`` and ``timestep`` [rows]; text has no timestep, so that is -1.
    """
    for start in range(samples.start, samples.stop, extract.batch_size):
        batch = tokens[start : min(start + extract.batch_size, samples.stop)]
        kept = batch.kept(extract.positions)
        sample, position = (axis.astype(np.int32) for axis in np.nonzero(kept))
        index = {
            "sample": sample + np.int32(start),
            "position": position,
            "timestep": np.full(len(sample), -1, np.int32),
        }
        got = activations(encoder, wanted, batch, extract.dtype)
        yield len(batch.ids), {name: {"activations": hidden[kept], **index} for name, hidden in got.items()}
