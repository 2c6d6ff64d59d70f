"""The text of a concept, and a warning about the part of it that a text encoder does not read."""

import typing
from collections.abc import Sequence

from revelio_jax.pipelines.families import family_of


def joined(pipe: typing.Any, phrases: Sequence[str]) -> str:
    """Return the phrases of a concept as one text. Print a line if a text encoder reads only the start of it."""
    text = ", ".join(phrases)
    for component in family_of(pipe).text_encoders.values():
        tokenizer = getattr(pipe, component.replace("text_encoder", "tokenizer"), None)
        if tokenizer is None:
            continue
        limit = tokenizer.model_max_length
        if component == family_of(pipe).text_encoders.get(family_of(pipe).position_text_encoder or ""):
            limit = family_of(pipe).prompt_tokens(pipe) or limit
        count = len(tokenizer(text, truncation=False, verbose=False).input_ids)
        if count > limit:
            print(f"the concept has {count} tokens, of which the {component} reads {limit}: {text!r}")
    return text
