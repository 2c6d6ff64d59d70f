"""Attach to a pipeline, detach from it, and run it unsteered.

Forward hooks on the steered modules change the activations, but only during calls of this pipeline: while anything is
attached, the class of the pipeline is replaced by a subclass that intercepts ``__call__`` and ``encode_prompt``. Other
pipelines that share the modules are not steered. Detaching the last attachment restores the class.
"""

import contextlib
import functools
import typing
from collections.abc import Generator

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hooks
from revelio_jax.pipelines.families import family_of
from revelio_jax.steering import calls
from revelio_jax.steering.attachment import Attachment
from revelio_jax.steering.passes import before_pass
from revelio_jax.steering.state import SteeringState
from revelio_jax.steering.steering_hook import SteeringHook

_STATE = "_revelio_steering"  # the attribute of a pipeline that holds its state


def attach(pipe: typing.Any, attachment: Attachment) -> Attachment:
    """Attach to ``pipe`` until ``attachment.detach`` is called; return the attachment.

    Raise InputError if the same owner has already attached one of its concepts to one of its hook points.
    """
    state = state_of(pipe)
    if state is None:
        state = SteeringState(pipe, _pipeline_class(pipe), family_of(pipe))
    _refuse_twice(state, attachment)
    if not state.attachments:
        vars(pipe)[_STATE] = state
        pipe.__class__ = _intercepted(state.pipeline_class)
    state.attachments.append(attachment)
    attachment.detach = functools.partial(_detach, state, attachment)
    needs_recompiling = False
    for attached in attachment.attached_points:
        point = attached.point
        model = getattr(pipe, point.component)
        if point.name not in state.hooks:
            state.hooks[point.name] = SteeringHook(point)
            needs_recompiling = needs_recompiling or _is_compiled(model, point.module)
        state.hooks[point.name].add(attached)
        if point.component not in state.unwatch:
            before: typing.Any = torch.compiler.disable(functools.partial(before_pass, state, point.component))
            state.unwatch[point.component] = hooks.before_forward(model, before)
    if needs_recompiling:
        torch.compiler.reset()  # existing compiled code does not contain the new hooks
    return attachment


def _detach(state: SteeringState, attachment: Attachment) -> None:
    """Remove an attachment, and every hook that no other attachment needs."""
    state.attachments.remove(attachment)
    for attached in attachment.attached_points:
        hook = state.hooks[attached.point.name]
        hook.discard(attached)
        if not hook.attached_points:
            del state.hooks[attached.point.name]
    for component in set(state.unwatch) - {hook.point.component for hook in state.hooks.values()}:
        state.unwatch.pop(component)()
    if not state.attachments:
        state.pipe.__class__ = state.pipeline_class
        del vars(state.pipe)[_STATE]


@contextlib.contextmanager
def unsteered(pipe: typing.Any) -> Generator[None]:
    """Run the pipeline without steering in the block."""
    state = state_of(pipe)
    if state is None:
        yield
        return
    outer = state.call, state.encoded_branch
    state.call = state.encoded_branch = None
    del vars(pipe)[_STATE]
    try:
        yield
    finally:
        vars(pipe)[_STATE] = state
        state.call, state.encoded_branch = outer


def state_of(pipe: typing.Any) -> SteeringState | None:
    """Return the state of this pipeline object, or None if nothing is attached. A copy of the object has no state."""
    attributes: dict[str, typing.Any] = vars(pipe)
    state: SteeringState | None = attributes.get(_STATE)
    return state if state is not None and state.pipe is pipe else None


def _refuse_twice(state: SteeringState, attachment: Attachment) -> None:
    names = {point.name for point in attachment.points}
    for other in state.attachments:
        shared = names & {point.name for point in other.points}
        for key in attachment.concepts:
            if other.owner is attachment.owner and shared and key in other.concepts:
                raise InputError(
                    f"{str(key)!r} is already attached at {min(shared)}; change it with set_strength, or remove() that "
                    "attachment first"
                )


def _pipeline_class(pipe: typing.Any) -> typing.Any:
    """Return the class of a pipeline; of a copy of a steered pipeline, the original class."""
    return getattr(type(pipe), "_intercepted_class", pipe.__class__)


@functools.cache
def _intercepted(cls: typing.Any) -> typing.Any:
    """Return a subclass of ``cls`` with the same name, whose calls use the steering state of the pipeline."""

    class Intercepted(cls):
        @functools.wraps(cls.__call__)
        def __call__(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
            state = state_of(self)
            if state is None:
                return cls.__call__(self, *args, **kwargs)
            with calls.steered_call(state, args, kwargs) as arguments:
                return cls.__call__(self, **arguments)

        if hasattr(cls, "encode_prompt"):

            @functools.wraps(cls.encode_prompt)
            def encode_prompt(self, *args: typing.Any, **kwargs: typing.Any) -> tuple[typing.Any, ...]:
                state = state_of(self)
                if state is None:
                    return cls.encode_prompt(self, *args, **kwargs)
                return calls.encode_prompt(state, args, kwargs)

    setattr(Intercepted, "_intercepted_class", cls)  # noqa: B010
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Intercepted, name, getattr(cls, name))
    return Intercepted


def _is_compiled(component: torch.nn.Module, module: torch.nn.Module) -> bool:
    """Return whether ``module`` runs inside of compiled code, which then includes its hooks."""
    return any(
        hasattr(outer, "_torchdynamo_orig_callable") or getattr(outer, "_compiled_call_impl", None)
        for outer in component.modules()
        if outer is not module and any(inner is module for inner in outer.modules())
    )
