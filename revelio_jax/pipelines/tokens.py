"""Classify the tokens of a prompt as BOS, content, EOS or padding, for extraction and steering to select from."""

import typing

import numpy as np

# CLIP pads with its EOS token, so only the first EOS ends the prompt.
BOS, CONTENT, EOS, PADDING = range(4)
KEPT = {
    "all": (BOS, CONTENT, EOS, PADDING),
    "no_padding": (BOS, CONTENT, EOS),
    "content": (CONTENT,),
}


def position_rule(positions: str, name: str) -> str:
    """Return config.extract.positions with auto resolved: all for CLIP, no_padding for other encoders.

    ``name`` is the hook point. CLIP keeps its padding because steering changes it too. Most of T5's rows are padding.
    """
    if positions != "auto":
        return positions
    return "all" if name.startswith("clip") else "no_padding"


def kinds(ids: np.ndarray, tokenizer: typing.Any, mask: np.ndarray | None = None) -> np.ndarray:
    """Return BOS, CONTENT, EOS or PADDING for every token, int8 [sample, position], from ids of that shape.

    ``mask`` is the attention mask of the same shape, if the encoder gets one.
    """
    position = np.arange(ids.shape[1])
    # Models like BERT use CLS and SEP for the two ends.
    start = _first(tokenizer.bos_token_id, tokenizer.cls_token_id)
    stop = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
    is_end = ids == stop
    after_last = ids.shape[1] if mask is None else mask.sum(1)  # for truncated prompts, which have no end token
    end = np.where(is_end.any(1), is_end.argmax(1), after_last)[:, None]
    kind = np.where(position < end, CONTENT, np.where(position == end, EOS, PADDING)).astype(np.int8)
    if mask is not None:
        kind[mask == 0] = PADDING
    if start is not None:  # T5 has no start token
        kind[:, 0] = np.where(ids[:, 0] == start, BOS, kind[:, 0])
    return kind


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
