"""What each token of a prompt is: extraction keeps some kinds of them, steering changes some."""

import typing

import numpy as np

# CLIP pads with its end marker, so only the first one ends the prompt.
BOS, CONTENT, EOS, PADDING = range(4)
KEPT = {
    "all": (BOS, CONTENT, EOS, PADDING),
    "no_padding": (BOS, CONTENT, EOS),
    "content": (CONTENT,),
}


def kinds(ids: np.ndarray, tokenizer: typing.Any, mask: np.ndarray | None = None) -> np.ndarray:
    """BOS, CONTENT, EOS or PADDING of every token, int8 [sample, position], from ids of that shape.

    ``mask`` is what an encoder is told of its padding, where it is.
    """
    position = np.arange(ids.shape[1])
    # BERT and its kin call the two ends by other names; they, and only they, have all four.
    start = _first(tokenizer.bos_token_id, tokenizer.cls_token_id)
    stop = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
    is_end = ids == stop
    past = ids.shape[1] if mask is None else mask.sum(1)  # where a prompt that was cut has no end
    end = np.where(is_end.any(1), is_end.argmax(1), past)[:, None]
    found = np.where(position < end, CONTENT, np.where(position == end, EOS, PADDING)).astype(np.int8)
    if mask is not None:
        found[mask == 0] = PADDING
    if start is not None:  # T5 has none
        found[:, 0] = np.where(ids[:, 0] == start, BOS, found[:, 0])
    return found


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
