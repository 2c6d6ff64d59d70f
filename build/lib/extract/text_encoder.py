"""Text encoders alone: tokens of prompts, and the activations of several sites in one forward pass."""

import contextlib
import dataclasses
import typing
from collections.abc import Callable

import numpy as np
import pyarrow
import tensorstore as ts
import torch

from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.hook_points import HookPoint
from revelio_jax.pipelines.loading import DTYPES, TextEncoder, as_numpy
from revelio_jax.pipelines.tokens import KEPT, PADDING, kinds

TOKENISED = 8192  # prompts at a time: a tokenizer's own records of a prompt are many times its tokens


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids and attention mask int64 [sample, position], and what each token is, int8."""

    ids: np.ndarray
    mask: np.ndarray
    kinds: np.ndarray

    def __getitem__(self, at: slice | np.ndarray | tuple) -> "Tokens":
        return Tokens(self.ids[at], self.mask[at], self.kinds[at])

    def kept(self, positions: str) -> np.ndarray:
        """bool [sample, position]: the positions that config.extract.positions asks for, auto resolved."""
        return np.isin(self.kinds, KEPT[positions])


def positions(rule: str, site: HookPoint) -> str:
    """config.extract.positions with auto resolved: padding is steered in CLIP, and most rows of T5."""
    return rule if rule != "auto" else "all" if site.name.startswith("clip") else "no_padding"


def tokenise(encoder: TextEncoder, prompts: list[str]) -> Tokens:
    """Tokens as the pipeline makes them: cut and padded to the tokenizer's length.

    An encoder that is given a mask sees no padding; its prompts are padded to the longest one only.
    """
    tokenizer = encoder.tokenizer
    # A tokenizer without a length says 1e30; the encoder's own positions, or T5's 512, bound it.
    length = min(tokenizer.model_max_length, getattr(encoder.model.config, "max_position_embeddings", 512))
    padding = "longest" if encoder.masked else "max_length"
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(prompts), TOKENISED):
        got = tokenizer(
            prompts[start : start + TOKENISED],
            padding=padding,
            padding_side="right",
            max_length=length,
            truncation=True,
            return_tensors="np",
        )
        parts.append((got["input_ids"], got["attention_mask"]))
    longest = max(ids.shape[1] for ids, _ in parts)
    padding_id = tokenizer.pad_token_id or 0
    ids, mask = (
        np.concatenate(
            [np.pad(part, ((0, 0), (0, longest - part.shape[1])), constant_values=value) for part in column]
        ).astype(np.int64)
        for column, value in zip(zip(*parts, strict=True), (padding_id, 0), strict=True)
    )
    return Tokens(ids, mask, kinds(ids, tokenizer, mask if encoder.masked else None))


def described(
    samples: list[dict[str, typing.Any]], encoders: dict[str, TextEncoder], tokens: dict[str, Tokens]
) -> pyarrow.Table:
    """The samples with the tokens of each encoder, named as in its sites: ``clip.tokens``, as the tokenizer
    writes them, and ``clip.kinds``, what they are: 0 BOS, 1 content, 2 EOS. All positions after are padding.
    """
    table = pyarrow.Table.from_pylist(samples)
    for component, encoder in encoders.items():
        of = tokens[component]
        lengths = of.kinds.shape[1] - np.argmax(of.kinds[:, ::-1] != PADDING, axis=1)
        shown = np.arange(of.kinds.shape[1]) < lengths[:, None]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        used, numbers = np.unique(of.ids[shown], return_inverse=True)
        words = pyarrow.array(encoder.tokenizer.convert_ids_to_tokens(used.tolist()), pyarrow.string())
        columns = {"tokens": words.take(pyarrow.array(numbers)), "kinds": pyarrow.array(of.kinds[shown])}
        for name, values in columns.items():
            name = f"{encoder.name}.{name}"
            if name in samples[0]:
                raise InputError(f"prompts: a column is called {name!r}, as what is kept of tokens; rename it")
            table = table.append_column(name, pyarrow.ListArray.from_arrays(starts, values))
    return table


class _LastSiteReached(Exception):
    """Ends a forward pass: no later layer is wanted."""


@torch.inference_mode()
def activations(
    encoder: TextEncoder, wanted: list[HookPoint], tokens: Tokens, dtype: str, kept: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Activations [sample, position, d] of every wanted site, in one pass that ends after the last.

    With ``kept``, bool [sample, position], only those, [rows, d]: the others never leave the device.
    ``dtype`` is that of the result (bfloat16 as TensorStore has it). The pipelines give their text
    encoders no attention mask unless the encoder's config asks for one; neither is one given here.
    """
    device = encoder.device
    arguments = {"input_ids": torch.from_numpy(tokens.ids).to(device)}
    if encoder.masked:
        arguments["attention_mask"] = torch.from_numpy(tokens.mask).to(device)
    if kept is not None:
        rows = torch.from_numpy(kept).to(device)
    found: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for site in wanted:

            def keep(hidden: torch.Tensor, name: str = site.name) -> None:
                found[name] = (hidden if kept is None else hidden[rows]).to(DTYPES[dtype])
                if len(found) == len(wanted):
                    raise _LastSiteReached

            hooks.callback(hook_points.hook(site, keep))
        with contextlib.suppress(_LastSiteReached):
            encoder.model(**arguments)
    return {site.name: as_numpy(found[site.name]) for site in wanted}


def rows(
    encoder: TextEncoder,
    wanted: list[HookPoint],
    tokens: Tokens,
    samples: range,
    extract: ExtractConfig,
    progress: Callable[[int], typing.Any],
) -> dict[str, dict[str, np.ndarray]]:
    """Kept rows of the samples numbered ``samples``, in their order.

    Per site ``activations`` [rows, d] and int32 ``sample``, ``position`` and ``timestep`` [rows]; text has
    no timestep, so that is -1. Prompts go through the encoder sorted by length: a batch is cut where its
    last kept token is, if what comes after cannot be seen. ``progress`` is told how many are done.
    """
    part = tokens[samples.start : samples.stop]
    kept = part.kept(positions(extract.positions, wanted[0]))
    sample, position = (axis.astype(np.int32) for axis in np.nonzero(kept))
    index = {
        "sample": sample + np.int32(samples.start),
        "position": position,
        "timestep": np.full(len(sample), -1, np.int32),
    }
    length = np.full(len(kept), kept.shape[1])
    if _is_cut(encoder):
        length -= np.argmax(kept[:, ::-1], axis=1)
    first = np.concatenate([[0], np.cumsum(kept.sum(1))])  # row of every sample
    dtype = ts.dtype(extract.dtype).numpy_dtype
    gathered = {site.name: np.empty((len(sample), site.d), dtype) for site in wanted}
    by_length = np.argsort(length, kind="stable")
    for start in range(0, len(part.ids), extract.batch_size):
        batch = by_length[start : start + extract.batch_size]
        if not kept[batch].any():  # only empty prompts
            progress(len(batch))
            continue
        seen = (batch, slice(length[batch].max()))
        got = activations(encoder, wanted, part[seen], extract.dtype, kept[seen])
        to = np.concatenate([np.arange(first[i], first[i + 1]) for i in batch])
        for name, hidden in got.items():
            gathered[name][to] = hidden
        progress(len(batch))
    return {name: {"activations": hidden, **index} for name, hidden in gathered.items()}


def _is_cut(encoder: TextEncoder) -> bool:
    """Whether a token's activations are the same without the padding after it.

    They are where padding is masked, and in CLIP, which looks back only. In a pipeline's T5 every token
    sees the padding.
    """
    return encoder.masked or encoder.model.config.model_type.startswith("clip")
