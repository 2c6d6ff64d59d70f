"""Run a call of a steered pipeline: bind its arguments, and encode its prompts branch by branch.

The text encoders run once for the conditional and once for the unconditional branch. Encoding the branches separately
shows which branch a pass belongs to, without counting passes.
"""

import contextlib
import functools
import inspect
import typing
from collections.abc import Callable, Generator

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import guidance
from revelio_jax.pipelines.families.base import Arguments
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.steering.attachment import Attachment
from revelio_jax.steering.state import Call, SteeringState

Encoded = tuple[typing.Any, ...]
"""The result of a pipeline's ``encode_prompt``."""


@contextlib.contextmanager
def steered_call(state: SteeringState, args: tuple[typing.Any, ...], kwargs: Arguments) -> Generator[Arguments]:
    """Yield the arguments for the original ``__call__`` of the pipeline, and steer its denoiser in the block.

    Raise InputError if a text encoder is steered but the prompt is passed as embeddings.
    """
    bound = inspect.signature(state.pipeline_class.__call__).bind(state.pipe, *args, **kwargs)
    arguments = dict(list(bound.arguments.items())[1:])
    arguments |= arguments.pop("kwargs", {})
    if state.steers_text:
        _refuse_embeddings(arguments)
        arguments |= _encode_negative_prompt(state, arguments)
    bound.apply_defaults()
    outer_call = state.call  # not None if this call is nested in another one
    try:
        with guidance.named_branches(state.family.denoiser_of(state.pipe)) as named_branches:
            state.call = Call(bound.arguments | arguments, named_branches)
            yield arguments
    finally:
        state.call = outer_call
        state.deactivate_hooks()


def encode_prompt(state: SteeringState, args: tuple[typing.Any, ...], kwargs: Arguments) -> Encoded:
    """Return the result of the original ``encode_prompt`` of the pipeline, with each branch steered.

    Raise InputError if the prompt is passed as embeddings.
    """
    original = functools.partial(state.pipeline_class.encode_prompt, state.pipe)
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = bound.arguments

    def encode() -> Encoded:
        return original(*bound.args, **bound.kwargs)

    if not state.steers_text or _is_encoded(state, arguments):
        return encode()
    if state.call is None:
        _refuse_embeddings(arguments)
    if state.family.encodes_branches_separately:
        return _encode_branch(state, state.encoded_branch or CONDITIONAL, encode)
    guided = arguments["do_classifier_free_guidance"]
    arguments["do_classifier_free_guidance"] = False
    positive = _encode_branch(state, CONDITIONAL, encode)
    if not guided:
        return positive
    # If the pipeline gets the embeddings of the prompt, it encodes only the negative prompt.
    arguments["do_classifier_free_guidance"] = True
    arguments |= state.family.encoded_prompt(positive, arguments["num_images_per_prompt"])
    has_zeros = state.family.has_zero_negative(state.pipe, arguments)  # then no text encoder runs
    negative = encode() if has_zeros else _encode_branch(state, UNCONDITIONAL, encode)
    # The results alternate: prompt, negative prompt, pooled prompt, pooled negative prompt.
    return tuple(p if i % 2 == 0 else n for i, (p, n) in enumerate(zip(positive, negative, strict=True)))


def _encode_branch(state: SteeringState, branch: str, encode: Callable[[], Encoded]) -> Encoded:
    """Return the result of ``encode`` with the text encoders steered for ``branch``."""
    attachments = [attachment for attachment in state.attachments if attachment.weights(branch)]
    plain = None
    if any(attachment.is_joint or attachment.keeps_plain_pooled for attachment in attachments):
        plain = _encode_plain(state, branch, [attachment for attachment in attachments if attachment.is_joint], encode)
    outer_branch, state.encoded_branch = state.encoded_branch, branch
    try:
        encoded = encode()
    finally:
        state.encoded_branch = outer_branch
        state.deactivate_hooks()
        for attachment in attachments:
            attachment.forget_shares()
    vector = state.family.pooled
    if vector is None or not attachments:
        return encoded
    index = vector.conditional if branch == CONDITIONAL else vector.unconditional
    keeps_plain_pooled = any(attachment.keeps_plain_pooled for attachment in attachments)
    pooled = plain[index] if plain and keeps_plain_pooled else encoded[index]
    for attachment in attachments:
        pooled = attachment.steer_pooled(pooled, branch)
    return (*encoded[:index], pooled, *encoded[index + 1 :])


def _encode_plain(state: SteeringState, branch: str, joint: list[Attachment], encode: Callable[[], Encoded]) -> Encoded:
    """Return the result of ``encode`` without steering, and compute the shares of joined hook points from it."""
    names = {point.name for attachment in joint for point in attachment.points}
    hooks = {name: state.hooks[name] for name in names}
    for hook in hooks.values():
        hook.recording = []
    outer_branch, state.encoded_branch = state.encoded_branch, None
    try:
        # Run eagerly, because compiled code must not append to lists.
        with torch.compiler.set_stance("force_eager"):
            plain = encode()
        for attachment in joint:
            recordings = [hooks[point.name].recording for point in attachment.points]
            if all(recordings):  # a pipeline that uses zeros for an empty negative prompt runs no encoder
                attachment.compute_shares([passes[-1] for passes in recordings if passes], branch)
    finally:
        state.encoded_branch = outer_branch
        for hook in hooks.values():
            hook.recording = None
    return plain


@torch.no_grad()
def _encode_negative_prompt(state: SteeringState, arguments: Arguments) -> Arguments:
    """Return the call's arguments with the negative prompt as embeddings, or {} if it needs no separate encoding.

    The pipeline calls one method for both prompts, which does not show the branch. So the negative prompt is encoded
    here, as the unconditional branch.
    """
    call = state.family.negative_prompt_call(arguments)
    if call is None:
        return {}
    state.encoded_branch = UNCONDITIONAL
    try:
        embeddings, pooled, _ = state.pipe.encode_prompt(**call, device=state.pipe._execution_device)
    finally:
        state.encoded_branch = None
    encoded = {"negative_prompt_embeds": embeddings, "negative_pooled_prompt_embeds": pooled}
    return dict.fromkeys(("negative_prompt", "negative_prompt_2")) | encoded


def _is_encoded(state: SteeringState, arguments: Arguments) -> bool:
    """Return whether the prompt is the negative prompt that :func:`steered_call` already encoded."""
    return (
        state.call is not None and state.family.encodes_branches_separately and arguments["prompt_embeds"] is not None
    )


def _refuse_embeddings(arguments: Arguments) -> None:
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        if arguments.get(name) is not None:
            raise InputError(
                f"{name} cannot be steered, because the text encoder does not run for embeddings; pass the prompt as "
                "text, or call pipe.encode_prompt inside the block and the pipeline after it"
            )
