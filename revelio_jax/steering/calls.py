"""Follow a call of a steered pipeline: encode its prompts branch by branch, and check afterwards that steering acted.

The text encoders run once for the conditional and once for the unconditional branch. The embeddings that come out show
later which rows of the denoiser belong to which branch.
"""

import contextlib
import functools
import inspect
import typing
from collections.abc import Callable, Generator

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import guidance, hook_points
from revelio_jax.pipelines.families.base import Arguments
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.steering import outcome, provenance
from revelio_jax.steering.attachment import Attachment
from revelio_jax.steering.compatibility import refuse_unused
from revelio_jax.steering.state import PLAIN, Call, SteeringState

Encoded = tuple[typing.Any, ...]
"""The result of a pipeline's ``encode_prompt``."""
EMBEDDINGS = {"prompt_embeds": CONDITIONAL, "negative_prompt_embeds": UNCONDITIONAL}


@contextlib.contextmanager
def steered_call(state: SteeringState, args: tuple[typing.Any, ...], kwargs: Arguments) -> Generator[None]:
    """Steer the original ``__call__`` of the pipeline, which runs in the block with these arguments.

    Raise InputError before the block if the call cannot be steered, in it if a steered row is unknown, and after it if
    a hook point with a strength other than 0 did not act or its activations are not finite.
    """
    arguments = _bound(state, "__call__", args, kwargs)[1]
    _refuse_foreign_embeddings(state, arguments)
    _refuse_cropped_mask(state, arguments)
    _refuse_unused(state, arguments)
    for attachment in state.attachments:
        if hook_points.is_denoiser_point(attachment.points[0].name):
            attachment.refresh()  # may sample images
    outer_call = state.call  # not None if this call is nested in another one
    started = outcome.start(state)
    try:
        denoiser = state.family.denoiser_of(state.pipe)
        with guidance.named_branches(denoiser) as named_branches:
            state.call = call = Call(arguments, named_branches)
            for name, branch in EMBEDDINGS.items():
                call.branches.add(branch, arguments.get(name))
            yield
        outcome.check(state, call, started)
    finally:
        state.call = outer_call
        state.deactivate_hooks()


@contextlib.contextmanager
def encoding(state: SteeringState, branch: str) -> Generator[None]:
    """Steer the text encoders in the block as ``branch``, and remember what is computed from their output.

    Raise InputError after the block if no steered text encoder ran.
    """
    started = outcome.start(state)
    outer, state.encoded_branch = state.encoded_branch, branch
    components = {hook.point.component for hook in state.hooks.values()}
    encoders = [getattr(state.pipe, name) for name in state.family.text_encoders.values() if name in components]

    def mark(_module: torch.nn.Module, _args: typing.Any, output: typing.Any) -> None:
        for tensor in provenance.tensors(output):
            state.provenance.mark(tensor, branch, state.text_version())

    handles = [encoder.register_forward_hook(mark) for encoder in encoders]
    try:
        with state.owned(), provenance.Following(state.provenance):
            yield
        outcome.check_encoding(state, branch, started)
    finally:
        for handle in handles:
            handle.remove()
        state.encoded_branch = outer
        state.deactivate_hooks()


def encode_prompt(state: SteeringState, name: str, args: tuple[typing.Any, ...], kwargs: Arguments) -> typing.Any:
    """Return the result of the pipeline's own method ``name``, which encodes prompts, with each branch steered.

    Raise InputError if a branch that must be steered is passed as embeddings, or if the prompt is unknown.
    """
    original = functools.partial(getattr(state.pipeline_class, name), state.pipe)
    if state.encoded_branch == PLAIN:
        return original(*args, **kwargs)
    bound, arguments = _bound(state, name, args, kwargs)
    if state.call is None:
        _refuse_foreign_embeddings(state, arguments)
        _refuse_unused(state, arguments)

    def encode(**changed: typing.Any) -> typing.Any:
        bound.arguments.update(changed)
        return original(*bound.args, **bound.kwargs)

    if "negative_prompt" not in arguments:
        return _encode_one_prompt(state, arguments, encode)
    if "do_classifier_free_guidance" not in bound.arguments:
        raise InputError(
            f"{state.name}.{name} takes a negative prompt but no do_classifier_free_guidance, so the branches of "
            "guidance cannot be encoded one by one"
        )
    if name == "_encode_prompt":
        return _encode_to_batch(state, arguments, encode)
    guided = arguments["do_classifier_free_guidance"]
    if not state.steers_text:
        encoded = encode()
    else:
        encoded = positive = _encode_branch(state, CONDITIONAL, lambda: encode(do_classifier_free_guidance=False))
        if guided:
            # If the pipeline gets the embeddings of the prompt, it encodes only the negative prompt.
            given = state.family.encoded_prompt(positive, _images(arguments))
            negative = _encode_branch(state, UNCONDITIONAL, lambda: encode(do_classifier_free_guidance=True, **given))
            # The results alternate: prompt, negative prompt, pooled prompt, pooled negative prompt.
            encoded = tuple(p if i % 2 == 0 else n for i, (p, n) in enumerate(zip(positive, negative, strict=True)))
    _remember(state, CONDITIONAL, encoded[0], encoded[2:3])
    if guided:
        _remember(state, UNCONDITIONAL, encoded[1], encoded[3:4])
    return encoded


def _encode_one_prompt(state: SteeringState, arguments: Arguments, encode: Callable[[], Encoded]) -> Encoded:
    """Return the result of a method that encodes one prompt per call, for example in FLUX."""
    branch = _branch_of_prompt(state, arguments)
    if state.call is not None:
        state.call.encoded += 1
    encoded = _encode_branch(state, branch, encode) if state.steers_text else encode()
    _remember(state, branch, encoded[0], encoded[1:2])
    return encoded


def _encode_to_batch(state: SteeringState, arguments: Arguments, encode: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Return the result of a method that returns the rows of all branches, for example in InstructPix2Pix."""
    prompt_TD = _encode_branch(state, CONDITIONAL, lambda: (encode(do_classifier_free_guidance=False),))[0]
    _remember(state, CONDITIONAL, prompt_TD)
    if not arguments["do_classifier_free_guidance"]:
        return prompt_TD
    given = state.family.encoded_prompt((prompt_TD,), _images(arguments))
    batch = _encode_branch(state, UNCONDITIONAL, lambda: (encode(do_classifier_free_guidance=True, **given),))[0]
    groups = batch.split(len(prompt_TD))
    negative = [group for group in groups if not torch.equal(group, prompt_TD)]
    _remember(state, UNCONDITIONAL, negative[0] if negative else prompt_TD)
    return batch


def _branch_of_prompt(state: SteeringState, arguments: Arguments) -> str:
    """Return the branch whose prompt a method encodes that does not name it. Raise InputError if it is unknown."""
    call = state.call
    if call is None:
        return state.encoded_branch or CONDITIONAL
    for name, branch in EMBEDDINGS.items():
        if arguments.get("prompt_embeds") is not None and arguments["prompt_embeds"] is call.arguments.get(name):
            return branch
    prompt, positive, negative = (
        _as_list(text)
        for text in (arguments.get("prompt"), call.arguments.get("prompt"), call.arguments.get("negative_prompt"))
    )
    if positive == negative:  # pipelines encode the prompt first
        return UNCONDITIONAL if call.encoded else CONDITIONAL
    if prompt == positive or (not negative and not call.encoded):
        return CONDITIONAL
    if prompt == (negative or [""]):
        return UNCONDITIONAL
    raise InputError(
        f"{state.name} encodes a text that is neither the prompt nor the negative prompt of the call, so the branch of "
        "guidance to steer is unknown"
    )


def _remember(state: SteeringState, branch: str, embeddings: typing.Any, more: Encoded = ()) -> None:
    """Remember the embeddings of a branch, for the passes of the denoiser and for later calls."""
    if state.call is not None:
        state.call.branches.add(branch, embeddings)
        return
    for tensor in (embeddings, *more):
        if isinstance(tensor, torch.Tensor):
            state.provenance.mark(tensor, branch, state.text_version())


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
    if not encoded[index].any():  # SDXL's zeros for an empty negative prompt, which no encoder computed
        return encoded
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
    outer_branch, state.encoded_branch = state.encoded_branch, PLAIN
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


def _refuse_foreign_embeddings(state: SteeringState, arguments: Arguments) -> None:
    """Raise InputError if embeddings of a branch to steer were not encoded with the strengths of now."""
    attachments = state.text_attachments()
    for name, branch in EMBEDDINGS.items():
        acting = [attachment for attachment in attachments if attachment.weights(branch)]
        if not acting or arguments.get(name) is None:
            continue
        vector = state.family.pooled
        points = [point for attachment in acting for point in attachment.points]
        only_pooled = vector and vector.is_only_output and all(point.component == vector.component for point in points)
        checked = name.replace("prompt_embeds", "pooled_prompt_embeds") if only_pooled else name
        mark = state.provenance.of(arguments.get(checked))
        if mark is None:
            raise InputError(
                f"{checked} cannot be steered, because it was not encoded with the attached concepts, or was changed "
                f'after that; pass the prompt as text, or encode and change it under attached.encoding("{branch}")'
            )
        if mark != (branch, state.text_version()):
            reason = f"as the {mark[0]} branch" if mark[0] != branch else "with other strengths"
            raise InputError(f"{checked} was encoded {reason}; encode it again for the {branch} branch")


def _refuse_unused(state: SteeringState, arguments: Arguments) -> None:
    """Raise InputError if no output depends on a hook point that must act; it may follow from ``clip_skip``."""
    for attachment in state.attachments:
        if attachment.weights(CONDITIONAL) or attachment.weights(UNCONDITIONAL):
            refuse_unused(state.pipe, attachment.points, arguments.get("clip_skip"))


def _refuse_cropped_mask(state: SteeringState, arguments: Arguments) -> None:
    """Raise InputError if a mask means the output image, but the denoiser gets only a part of it."""
    if arguments.get("padding_mask_crop") is None:
        return
    if any(attachment.where.mask is not None for attachment in state.attachments):
        raise InputError(
            f"mask cannot be used with padding_mask_crop, because {state.name} then generates only a part of the image"
        )


def _bound(
    state: SteeringState, name: str, args: tuple[typing.Any, ...], kwargs: Arguments
) -> tuple[inspect.BoundArguments, Arguments]:
    """Return the bound arguments of a method of the pipeline with their defaults, and all of them by name.

    A subclass that passes on ``*args`` has the arguments of the method that it calls.
    """
    methods = [vars(cls)[name] for cls in state.pipeline_class.__mro__ if name in vars(cls)]
    signatures = [inspect.signature(functools.partial(method, state.pipe)) for method in methods]
    kinds = [{parameter.kind for parameter in signature.parameters.values()} for signature in signatures]
    named = (i for i, kind in enumerate(kinds) if inspect.Parameter.VAR_POSITIONAL not in kind)
    signature = signatures[next(named, 0)]
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(parameter.name)
    return bound, arguments


def _images(arguments: Arguments) -> int:
    """Return the number of images or videos for each prompt."""
    return arguments.get("num_images_per_prompt", arguments.get("num_videos_per_prompt", 1))


def _as_list(text: typing.Any) -> list[str]:
    return [text] if isinstance(text, str) else list(text or [])
