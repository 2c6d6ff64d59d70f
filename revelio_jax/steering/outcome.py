"""Check after a call of a pipeline that every attached hook point acted, and that its activations are finite.

A picture that steering did not reach looks like one that steering did not change, so it is an error.
"""

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.guidance import CONDITIONAL
from revelio_jax.steering.attached_point import AttachedPoint
from revelio_jax.steering.state import Call, SteeringState

Started = dict[AttachedPoint, tuple[int, int]]
"""Prepared and steered passes of each attached point before a call."""


def start(state: SteeringState) -> Started:
    """Return the counts of all attached points before a call or an encoding."""
    started: Started = {}
    for attached in _attached_points(state):
        attached.settle()
        attached.prepared_branches.clear()
        started[attached] = attached.prepared, attached.passes
    return started


def check(state: SteeringState, call: Call, started: Started) -> None:
    """Raise InputError if an attached point should have acted in a call, but did not, or not in every pass."""
    if getattr(state.pipe, "interrupt", False):
        return  # a callback ended the call early
    for attached, (prepared, passes) in started.items():
        if attached.attachment.session is None:
            continue  # removed by a callback
        attached.settle()
        reason = None
        if attached.attachment.weights(CONDITIONAL) and CONDITIONAL not in attached.prepared_branches:
            reason = _why_not(state, call, attached)
        _raise(state, attached, reason or _flaw(attached, attached.prepared - prepared, attached.passes - passes))


def check_encoding(state: SteeringState, branch: str, started: Started) -> None:
    """Raise InputError if an attached point should have acted on a branch that was encoded outside, but did not."""
    for attached, (prepared, passes) in started.items():
        if hook_points.is_denoiser_point(attached.point.name):
            continue
        attached.settle()
        reason = None
        if attached.attachment.weights(branch) and branch not in attached.prepared_branches:
            reason = f"the {attached.point.component} did not run in the block of encoding({branch!r})"
        _raise(state, attached, reason or _flaw(attached, attached.prepared - prepared, attached.passes - passes))


def _attached_points(state: SteeringState) -> list[AttachedPoint]:
    return [attached for attachment in state.attachments for attached in attachment.attached_points]


def _why_not(state: SteeringState, call: Call, attached: AttachedPoint) -> str | None:
    """Return why a hook point did not act on the prompt, None if its embeddings were steered before the call."""
    component, where = attached.point.component, attached.attachment.where
    ran = call.passes.get(component, 0)
    if not hook_points.is_denoiser_point(attached.point.name):
        if call.arguments.get("prompt_embeds") is not None:
            return None  # checked before the call
        if attached.attachment.is_joint and ran:
            return "hook points with one code for both encoders need a pipeline that calls encode_prompt"
        replaced = _replaced(state, attached)
        return replaced or f"the {component} did not encode the prompt ({ran} passes in this call)"
    if not ran:
        return _replaced(state, attached) or f"the {component} did not run"
    if where.follows_timestep and not any(where.factor(timestep) for timestep in call.timesteps):
        first, last = max(call.timesteps), min(call.timesteps)
        limits = f"steps={where.steps}" if where.steps else f"ramp={where.ramp}"
        return f"the call ran timesteps {first:g} to {last:g}, where {limits} does not steer"
    return f"no row of the {component} belongs to the prompt ({ran} passes in this call)"


def _replaced(state: SteeringState, attached: AttachedPoint) -> str | None:
    component = getattr(state.pipe, attached.point.component)
    if any(module is attached.point.module for module in component.modules()):
        return None
    return f"the {attached.point.component} was replaced after attaching; attach again"


def _flaw(attached: AttachedPoint, prepared: int, passes: int) -> str | None:
    """Return what is wrong with the steered passes of a call, None if nothing is."""
    if passes != prepared:
        return f"its module ran {passes} times in {prepared} passes of the {attached.point.component}"
    if not attached.is_finite:
        return "its steered activations are not finite; use a smaller strength, or bfloat16 or float32"
    if not attached.was_finite:
        return "its activations are not finite before steering: the pipeline itself computes them"
    return None


def _raise(state: SteeringState, attached: AttachedPoint, reason: str | None) -> None:
    if reason:
        raise InputError(f"{state.name} was not steered correctly at {attached.point.name}: {reason}")
