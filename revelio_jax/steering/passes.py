"""Prepare a pass of a component: which attached points act, on which rows and positions, and how strongly.

Weights, positions and grids change from pass to pass. They are written into tensors before the pass, outside of
compiled code.
"""

import inspect
import threading
import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import tokens
from revelio_jax.pipelines.branches import EQUAL, UNKNOWN
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.steering import step_caches
from revelio_jax.steering.attached_point import AttachedPoint
from revelio_jax.steering.concept import is_masked, is_reading, tokenizer_of
from revelio_jax.steering.prompt_rows import branches_of_prompts
from revelio_jax.steering.state import PLAIN, Call, SteeringState
from revelio_jax.steering.steering_hook import Pass, SteeringHook

Args = tuple[typing.Any, ...]
Kwargs = dict[str, typing.Any]


def before_pass(state: SteeringState, component: str, args: Args, kwargs: Kwargs) -> None:
    """Prepare the hooks of a component for its next pass, from the arguments of that pass.

    Raise InputError if a hook point must act, but the branches of the rows are unknown.
    """
    if state.thread not in (None, threading.get_ident()):
        return  # another pipeline runs the component at the same time
    hooks = [hook for hook in state.hooks.values() if hook.point.component == component]
    for hook in hooks:
        hook.active, hook.watched = (), None
    if state.encoded_branch == PLAIN or is_reading():
        return
    if state.call is None and state.encoded_branch is None:
        state.foreign_passes[component] = state.foreign_passes.get(component, 0) + 1
        return
    if state.call is not None:
        state.call.passes[component] = state.call.passes.get(component, 0) + 1
    if not any(hook.watchers or _acting(hook) for hook in hooks):
        return
    if component == state.family.denoiser:
        _before_denoiser(state, component, hooks, args, kwargs)
    else:
        _before_text_encoder(state, component, hooks, args, kwargs)


def _acting(hook: SteeringHook) -> list[AttachedPoint]:
    """Return the attached points that have a strength other than 0."""
    return [
        attached
        for attached in hook.attached_points
        if any(attached.attachment.weights(branch) for branch in (CONDITIONAL, UNCONDITIONAL))
    ]


def _before_text_encoder(
    state: SteeringState, component: str, hooks: list[SteeringHook], args: Args, kwargs: Kwargs
) -> None:
    ids_BT = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
    mask_BT = kwargs.get("attention_mask")
    if state.encoded_branch is not None:
        branches = [state.encoded_branch] * len(ids_BT)
    else:
        branches = _branches_of_tokens(state, component, hooks, ids_BT)
    # Encoding a concept for a new prompt length runs this encoder, which must not be steered then.
    outer, state.encoded_branch = state.encoded_branch, PLAIN
    try:
        for hook in hooks:
            active: list[AttachedPoint] = []
            for attached in _acting(hook):
                if attached.is_idle or not _set_weights(attached, branches):
                    continue
                attached.attachment.refresh()  # here, because pipelines scale LoRAs only while they encode a prompt
                attached.attachment.set_tokens(ids_BT.shape[1])
                attached.set_positions(_steered_tokens(state.pipe, attached, ids_BT, mask_BT))
                active.append(attached)
            _activate(hook, active, Pass(branches))
    finally:
        state.encoded_branch = outer


def _branches_of_tokens(
    state: SteeringState, component: str, hooks: list[SteeringHook], ids_BT: torch.Tensor
) -> list[str]:
    """Return the branch of each prompt. Raise InputError if a steered prompt is not one of the call's prompts."""
    call = typing.cast("Call", state.call)
    branches = branches_of_prompts(state.pipe, component, call.arguments, ids_BT)
    unclear = {UNKNOWN: "neither the prompt nor the negative prompt", EQUAL: "both the prompt and the negative prompt"}
    for branch, what in unclear.items():
        if branch in branches and (acting := [hook.point.name for hook in hooks if _acting(hook)]):
            raise InputError(
                f"{state.name} runs its {component} on a text that is {what} of the call, so {acting[0]} cannot be "
                f'steered; encode the prompts under attached.encoding("conditional" or "unconditional") and pass the '
                "embeddings"
            )
    return branches


def _steered_tokens(
    pipe: typing.Any, attached: AttachedPoint, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None
) -> torch.Tensor | None:
    """Return the positions to steer, bool [B or 1, T, 1]; None for all."""
    positions = attached.attachment.where.positions
    length = ids_BT.shape[1]
    if isinstance(positions, torch.Tensor):
        if len(positions) != length:
            raise InputError(f"positions has {len(positions)} entries; the prompts of this call have {length} tokens")
        return positions[None, :, None]
    if positions == "all":
        return None
    component = attached.point.component
    mask = None
    if mask_BT is not None and is_masked(getattr(pipe, component)):
        mask = mask_BT.cpu().numpy()
    kinds = tokens.kinds(ids_BT.cpu().numpy(), tokenizer_of(pipe, component), mask)
    kinds_BT1 = torch.from_numpy(kinds)[..., None]
    return torch.isin(kinds_BT1, torch.tensor(tokens.KEPT[positions], dtype=kinds_BT1.dtype))


def _before_denoiser(
    state: SteeringState, component: str, hooks: list[SteeringHook], args: Args, kwargs: Kwargs
) -> None:
    call = state.call
    if call is None:
        return
    denoiser = getattr(state.pipe, component)
    forward = getattr(denoiser, "_orig_mod", denoiser).forward
    arguments: Kwargs = inspect.signature(forward).bind(*args, **kwargs).arguments
    latents: torch.Tensor = arguments["sample"] if "sample" in arguments else arguments["hidden_states"]
    timestep = float(torch.as_tensor(arguments["timestep"]).flatten()[0]) * state.family.timestep_scale
    call.timesteps.append(timestep)
    acting = {hook.point.name: _acting(hook) for hook in hooks}
    branches = _branches_of_rows(state, call, arguments, latents)
    if set(branches) & {UNKNOWN, EQUAL} and (names := [name for name, points in acting.items() if points]):
        raise InputError(_unclear_rows(state, component, names[0], branches))
    for hook in hooks:
        active: list[AttachedPoint] = []
        for attached in acting[hook.point.name]:
            where = attached.attachment.where
            factor = where.factor(timestep) if where.follows_timestep else 1.0
            if factor == 0 or not _set_weights(attached, branches, factor):
                continue
            attached.set_positions(_steered_positions(state, call, attached, arguments))
            if where.mask is not None:
                call.image_grid = call.image_grid or state.family.image_grid(denoiser, latents, arguments)
                hook.grid = call.image_grid
            active.append(attached)
        if active and (reason := step_caches.refusal(hook.point, denoiser)):
            raise InputError(f"{state.name} cannot be steered at {hook.point.name}: {reason}")
        grid = None
        if hook.watchers and not hook.point.is_map and not hook.point.name.endswith(".text"):
            grid = state.family.image_grid(denoiser, latents, arguments)
        _activate(hook, active, Pass(branches, timestep, grid))


def _branches_of_rows(state: SteeringState, call: Call, arguments: Kwargs, latents: torch.Tensor) -> list[str]:
    """Return the branch of each row of the denoiser's activations, UNKNOWN or EQUAL."""
    conditioning = arguments.get(state.family.conditioning_argument)
    if not isinstance(conditioning, torch.Tensor):
        return [UNKNOWN] * len(latents)
    branches = state.family.prompt_branches(state.pipe, conditioning) or call.branches.of_rows(conditioning)
    if latents.ndim == 5 and len(branches) == len(latents):  # a video: its frames become rows inside
        branches = [branch for branch in branches for _ in range(latents.shape[2])]
    if set(branches) == {EQUAL}:
        if named := call.named_branches[-1]:
            return [named] * len(branches)
        groups = call.branches.groups(len(latents))
        order = state.family.group_branches(state.pipe, groups)
        if order:
            return [branch for branch in order for _ in range(len(branches) // groups)]
    return branches


def _unclear_rows(state: SteeringState, component: str, point: str, branches: list[str]) -> str:
    if UNKNOWN in branches:
        return (
            f"{state.name} passes its {component} embeddings that belong neither to the prompt nor to the "
            f"negative prompt (did a callback change them?), so the rows of {point} to steer are unknown"
        )
    return (
        f"in this call of {state.name} the prompt equals the negative prompt, so the rows of {point} to steer are "
        "unknown; change one of them, or turn guidance off"
    )


def _steered_positions(
    state: SteeringState, call: Call, attached: AttachedPoint, arguments: Kwargs
) -> torch.Tensor | None:
    """Return the positions of the denoiser to steer, bool [1, T, 1]; None for all."""
    where = attached.attachment.where
    if isinstance(where.positions, torch.Tensor):
        return where.positions[None, :, None]
    if where.reference or attached.point.name.endswith(".text"):
        return None
    ids = arguments.get("img_ids")
    if ids is not call.reference_ids:
        call.reference_ids, call.reference = ids, state.family.reference_positions(arguments)
    return None if call.reference is None else ~call.reference[None, :, None]


def _set_weights(attached: AttachedPoint, branches: list[str], factor: float = 1.0) -> bool:
    """Set the weight of each concept on each row. Return False if all are 0."""
    attachment = attached.attachment
    weights = {branch: attachment.weights(branch) for branch in set(branches)}
    if not any(weights.values()):
        return False
    concepts = len(attachment.concepts)
    of_rows = [weights[branch] or [0.0] * concepts for branch in branches]
    attached.set_weights([tuple(factor * row[i] for row in of_rows) for i in range(concepts)])
    attached.prepared_branches |= {branch for branch in weights if weights[branch]}
    return True


def _activate(hook: SteeringHook, active: list[AttachedPoint], current: Pass) -> None:
    hook.active, hook.thread = tuple(active), threading.get_ident()
    hook.rows = len(current.branches) if len(set(current.branches)) > 1 else None
    hook.watched = current if hook.watchers else None
