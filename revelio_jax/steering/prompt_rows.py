"""Find the branch of guidance of each prompt that a text encoder receives, from its tokens.

Pipelines that do not encode through ``encode_prompt`` run their text encoders themselves. The prompt and the negative
prompt are arguments of the call, so the tokens show which of them a row is.
"""

import typing

import torch

from revelio_jax.pipelines.branches import branch_of
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.steering.concept import converted, tokenizer_of


def branches_of_prompts(
    pipe: typing.Any, component: str, call: dict[str, typing.Any], ids_BT: torch.Tensor
) -> list[str]:
    """Return the branch of each row of token ids [B, T], UNKNOWN or EQUAL.

    ``call`` has the arguments of the pipeline's call.
    """
    texts = {
        CONDITIONAL: _texts(call, "prompt", component),
        UNCONDITIONAL: _texts(call, "negative_prompt", component) or [""],
    }
    length = ids_BT.shape[1]
    known = {branch: [_tokens(pipe, component, text, length) for text in given] for branch, given in texts.items()}
    tokenizer = tokenizer_of(pipe, component)
    padding = {tokenizer.pad_token_id, tokenizer.eos_token_id}

    def is_one_of(row: list[int], prompts: list[list[int]]) -> bool:
        return any(row[: len(ids)] == ids and set(row[len(ids) :]) <= padding for ids in prompts)

    return [
        branch_of(is_one_of(row, known[CONDITIONAL]), is_one_of(row, known[UNCONDITIONAL])) for row in ids_BT.tolist()
    ]


def _texts(call: dict[str, typing.Any], name: str, component: str) -> list[str]:
    """Return the texts of an argument for one encoder: prompt_2 for text_encoder_2, if it is given."""
    value = call.get(name + component.removeprefix("text_encoder")) or call.get(name)
    values = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return [text for text in typing.cast("list[typing.Any]", values) if isinstance(text, str)]


def _tokens(pipe: typing.Any, component: str, text: str, length: int) -> list[int]:
    """Return the token ids of a text without padding, cut to ``length``."""
    tokenizer = tokenizer_of(pipe, component)
    return tokenizer(converted(pipe, [text], tokenizer), max_length=length, truncation=True).input_ids[0]
