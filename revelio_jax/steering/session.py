"""Attach to a pipeline, detach from it, and run it unsteered.

Forward hooks on the steered modules change the activations, but only during calls of this pipeline: while anything is
attached, the class of the pipeline is replaced by a subclass that intercepts ``__call__`` and ``encode_prompt``. Other
pipelines that share the modules are not steered. Detaching the last attachment restores the class.
"""

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Callable, Generator, Sequence

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hooks
from revelio_jax.pipelines.families import family_of
from revelio_jax.steering import calls
from revelio_jax.steering.attachment import Attachment
from revelio_jax.steering.passes import before_pass
from revelio_jax.steering.state import PLAIN, SteeringState
from revelio_jax.steering.steering_hook import Pass, SteeringHook

_STATE = "_revelio_steering"  # the attribute of a pipeline that holds its state


def attach(pipe: typing.Any, attachment: Attachment) -> Attachment:
    """Attach to ``pipe`` until the attachment is removed; return the attachment.

    Raise InputError if the same owner has already attached one of its concepts to one of its hook points.
    """
    state = state_of(pipe) or SteeringState(pipe, _pipeline_class(pipe), family_of(pipe))
    _refuse_twice(state, attachment)
    _start(state)
    state.attachments.append(attachment)
    attachment.session = PipelineSession(state)
    points = {attached.point.name: attached for attached in attachment.attached_points}
    for name, hook in _hooks_at(state, attachment.points).items():
        hook.add(points[name])
    return attachment


@dataclasses.dataclass(frozen=True)
class PipelineSession:
    """The steered pipeline of an attachment."""

    state: SteeringState

    def detach(self, attachment: Attachment) -> None:
        """Remove an attachment, and every hook that nothing else needs."""
        self.state.attachments.remove(attachment)
        for attached in attachment.attached_points:
            self.state.hooks[attached.point.name].discard(attached)
        _remove_idle_hooks(self.state)

    def encoding(self, branch: str) -> contextlib.AbstractContextManager[None]:
        """Steer text encoders in the block as ``branch``."""
        return calls.encoding(self.state, branch)

    def check_foreign_passes(self, attachment: Attachment) -> None:
        """Raise InputError if only other pipelines ran the components of an attachment."""
        for point in attachment.points:
            if count := self.state.foreign_passes.get(point.component):
                raise InputError(
                    f"nothing was steered at {point.name}: this {self.state.name} was not called, but its "
                    f"{point.component} ran in {count} passes elsewhere; attach to the pipeline that is called, or "
                    "encode prompts under attached.encoding"
                )


@contextlib.contextmanager
def watching(
    pipe: typing.Any,
    points: Sequence[hooks.HookPoint],
    on_pass: Callable[[str, Pass, torch.Tensor], typing.Any],
    *,
    difference: bool = False,
) -> Generator[None]:
    """Call ``on_pass`` with hook point, pass and activations [B, T, D], float32, for calls of ``pipe`` in the block.

    The activations are those before steering; with ``difference``, output minus input of the module.
    """
    state = state_of(pipe) or SteeringState(pipe, _pipeline_class(pipe), family_of(pipe))
    _start(state)
    watchers = {name: functools.partial(on_pass, name) for name in (point.name for point in points)}
    for name, hook in _hooks_at(state, points).items():
        hook.watchers[watchers[name]] = difference
    try:
        yield
    finally:
        for name, watcher in watchers.items():
            del state.hooks[name].watchers[watcher]
        _remove_idle_hooks(state)


def _start(state: SteeringState) -> None:
    """Intercept the calls of a pipeline, if they are not intercepted yet."""
    if vars(state.pipe).get(_STATE) is not state:
        vars(state.pipe)[_STATE] = state
        state.pipe.__class__ = _intercepted(state.pipeline_class)


def _hooks_at(state: SteeringState, points: Sequence[hooks.HookPoint]) -> dict[str, SteeringHook]:
    """Return the hooks at hook points by name. Those that are new are registered."""
    needs_recompiling = False
    for point in points:
        model = getattr(state.pipe, point.component)
        if point.name not in state.hooks:
            state.hooks[point.name] = SteeringHook(point)
            needs_recompiling = needs_recompiling or _is_compiled(model, point.module)
        if point.component not in state.unwatch:
            before: typing.Any = torch.compiler.disable(functools.partial(before_pass, state, point.component))
            state.unwatch[point.component] = hooks.before_forward(model, before)
    if needs_recompiling:
        torch.compiler.reset()  # existing compiled code does not contain the new hooks
    return {point.name: state.hooks[point.name] for point in points}


def _remove_idle_hooks(state: SteeringState) -> None:
    """Remove every hook that nothing needs, and with the last one restore the pipeline."""
    for name in [name for name, hook in state.hooks.items() if hook.is_idle]:
        state.hooks.pop(name).remove()
    for component in set(state.unwatch) - {hook.point.component for hook in state.hooks.values()}:
        state.unwatch.pop(component)()
    if not state.hooks and state_of(state.pipe) is state:
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
    state.call, state.encoded_branch = None, PLAIN
    state.deactivate_hooks()
    del vars(pipe)[_STATE]
    state.pipe.__class__ = state.pipeline_class
    try:
        yield
    finally:
        state.pipe.__class__ = _intercepted(state.pipeline_class)
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
            with state.owned(), calls.steered_call(state, args, kwargs):
                return cls.__call__(self, *args, **kwargs)

    # InstructPix2Pix has only the older method, which returns the rows of all branches in one tensor.
    method = next((name for name in ("encode_prompt", "_encode_prompt") if hasattr(cls, name)), None)
    if method:

        @functools.wraps(getattr(cls, method))
        def encode(self: typing.Any, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
            state = state_of(self)
            if state is None:
                return getattr(cls, method)(self, *args, **kwargs)
            with state.owned():
                return calls.encode_prompt(state, method, args, kwargs)

        setattr(Intercepted, method, encode)
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
