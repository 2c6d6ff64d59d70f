"""Run text encoders without their pipeline: tokenize prompts, and record several hook points in one pass."""

import contextlib
import dataclasses
import typing

import numpy as np
import pyarrow
import tensorstore as ts
import torch

from extract.jobs import Progress, Sample, ShardRows
from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import hooks
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.pipelines.loading import DTYPES, TextEncoder, as_numpy
from revelio_jax.pipelines.tokens import KEPT, PADDING, kinds, position_rule

# Prompts per tokenizer call. The encodings of a tokenizer take many times the memory of the token ids.
TOKENIZER_BATCH = 8192


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of prompts: ``ids`` and attention ``mask``, int64 [prompt, position], and ``kinds``, int8 of that shape.

    A kind is BOS, CONTENT, EOS or PADDING of :mod:`revelio_jax.pipelines.tokens`.
    """

    ids: np.ndarray
    mask: np.ndarray
    kinds: np.ndarray

    def __getitem__(self, index: slice | np.ndarray | tuple[np.ndarray, slice]) -> "Tokens":
        """Index all three arrays."""
        return Tokens(self.ids[index], self.mask[index], self.kinds[index])

    def selected(self, rule: str) -> np.ndarray:
        """Return a mask of the positions to keep: bool [prompt, position]. ``rule`` is all, no_padding or content."""
        return np.isin(self.kinds, KEPT[rule])


def tokenize(encoder: TextEncoder, prompts: list[str]) -> Tokens:
    """Tokenize prompts as the pipeline does: truncated and padded to the tokenizer's length.

    An encoder with an attention mask ignores padding, so its prompts are padded only to the longest prompt.
    """
    tokenizer = encoder.tokenizer
    # A tokenizer without a length reports 1e30. The encoder's position embeddings, or 512 for T5, are the limit.
    length = min(tokenizer.model_max_length, getattr(encoder.model.config, "max_position_embeddings", 512))
    padding = "longest" if encoder.masked else "max_length"
    batches: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(prompts), TOKENIZER_BATCH):
        encoding = tokenizer(
            prompts[start : start + TOKENIZER_BATCH],
            padding=padding,
            padding_side="right",
            max_length=length,
            truncation=True,
            return_tensors="np",
        )
        batches.append((encoding["input_ids"], encoding["attention_mask"]))
    longest = max(ids.shape[1] for ids, _ in batches)
    ids = _concatenate([ids for ids, _ in batches], longest, tokenizer.pad_token_id or 0)
    mask = _concatenate([mask for _, mask in batches], longest, 0)
    return Tokens(ids, mask, kinds(ids, tokenizer, mask if encoder.masked else None))


def _concatenate(batches: list[np.ndarray], length: int, padding: int) -> np.ndarray:
    """Pad batches [prompt, position] to ``length`` positions and concatenate them: int64."""
    widths = [((0, 0), (0, length - batch.shape[1])) for batch in batches]
    padded = [np.pad(batch, width, constant_values=padding) for batch, width in zip(batches, widths, strict=True)]
    return np.concatenate(padded).astype(np.int64)


def samples_table(samples: list[Sample], encoders: dict[str, TextEncoder], tokens: dict[str, Tokens]) -> pyarrow.Table:
    """Return the samples with two columns per encoder, named like its hook points.

    ``clip.tokens`` are the tokens in the tokenizer's spelling. ``clip.kinds`` are 0 for BOS, 1 for content and 2 for
    EOS. Both end with the last token before the padding. Raise InputError if the samples already have a column of
    that name.
    """
    table = pyarrow.Table.from_pylist(samples)
    for component, encoder in encoders.items():
        ids, kinds = tokens[component].ids, tokens[component].kinds
        lengths = kinds.shape[1] - np.argmax(kinds[:, ::-1] != PADDING, axis=1)
        is_token = np.arange(kinds.shape[1]) < lengths[:, None]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        vocabulary, numbers = np.unique(ids[is_token], return_inverse=True)
        words = pyarrow.array(encoder.tokenizer.convert_ids_to_tokens(vocabulary.tolist()), pyarrow.string())
        columns = {"tokens": words.take(pyarrow.array(numbers)), "kinds": pyarrow.array(kinds[is_token])}
        for suffix, values in columns.items():
            name = f"{encoder.name}.{suffix}"
            if name in samples[0]:
                raise InputError(f"prompts: column {name!r} is reserved for tokens; rename it")
            table = table.append_column(name, pyarrow.ListArray.from_arrays(starts, values))
    return table


class _LastHookPointReached(Exception):
    """The last hook point is recorded, so the forward pass can end."""


@torch.inference_mode()
def activations(
    encoder: TextEncoder, points: list[HookPoint], tokens: Tokens, dtype: str, selected: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Run one forward pass that ends after the last hook point, and return activations [prompt, position, d].

    With ``selected``, bool [prompt, position], return only those rows, [rows, d]; the others are not copied from the
    device. ``dtype`` is the dtype of the result. As in the pipelines, the encoder gets an attention mask only if its
    config enables one.
    """
    device = encoder.device
    arguments = {"input_ids": torch.from_numpy(tokens.ids).to(device)}
    if encoder.masked:
        arguments["attention_mask"] = torch.from_numpy(tokens.mask).to(device)
    rows = None if selected is None else torch.from_numpy(selected).to(device)
    recording: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as stack:
        for point in points:

            def record(hidden: torch.Tensor, name: str = point.name) -> None:
                recording[name] = (hidden if rows is None else hidden[rows]).to(DTYPES[dtype])
                if len(recording) == len(points):
                    raise _LastHookPointReached

            stack.callback(hooks.hook(point, record))
        with contextlib.suppress(_LastHookPointReached):
            encoder.model(**arguments)
    return {point.name: as_numpy(recording[point.name]) for point in points}


def rows(
    encoder: TextEncoder,
    points: list[HookPoint],
    tokens: Tokens,
    samples: range,
    extract: ExtractConfig,
    progress: Progress,
) -> ShardRows:
    """Return the rows of the prompts numbered ``samples``, in their order, at every hook point.

    ``timestep`` is -1, because text has no timestep. Prompts pass through the encoder sorted by length. If the
    encoder's activations do not depend on later positions, a batch is truncated to its longest prompt.
    """
    part = tokens[samples.start : samples.stop]
    selected = part.selected(position_rule(extract.positions, points[0].name))
    sample, position = (axis.astype(np.int32) for axis in np.nonzero(selected))
    index = {
        "sample": sample + np.int32(samples.start),
        "position": position,
        "timestep": np.full(len(sample), -1, np.int32),
    }
    lengths = np.full(len(selected), selected.shape[1])
    if _ignores_padding(encoder):
        lengths -= np.argmax(selected[:, ::-1], axis=1)
    first_rows = np.concatenate([[0], np.cumsum(selected.sum(1))])  # of each prompt
    dtype = ts.dtype(extract.dtype).numpy_dtype
    gathered = {point.name: np.empty((len(sample), point.d), dtype) for point in points}
    by_length = np.argsort(lengths, kind="stable")
    for start in range(0, len(part.ids), extract.batch_size):
        batch = by_length[start : start + extract.batch_size]
        if selected[batch].any():  # a batch of empty prompts may have no rows
            truncated = (batch, slice(lengths[batch].max()))
            recording = activations(encoder, points, part[truncated], extract.dtype, selected[truncated])
            row_numbers = np.concatenate([np.arange(int(first_rows[i]), int(first_rows[i + 1])) for i in batch])
            for name, hidden in recording.items():
                gathered[name][row_numbers] = hidden
        progress(len(batch))
    return {name: {"activations": hidden, **index} for name, hidden in gathered.items()}


def _ignores_padding(encoder: TextEncoder) -> bool:
    """Return whether a token's activations are independent of the padding after it.

    They are if padding is masked, and in CLIP, whose attention is causal. In a pipeline's T5, every token attends to
    the padding.
    """
    model: typing.Any = encoder.model
    return encoder.masked or model.config.model_type.startswith("clip")
