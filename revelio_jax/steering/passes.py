"""Prepare a pass of a component: which attached points act, on which rows and positions, and how strongly.

Weights, positions and grids change from pass to pass. They are written into tensors before the pass, outside of
compiled code.
"""

import inspect
import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points, tokens
from revelio_jax.steering.attachment import AttachedPoint
from revelio_jax.steering.concept import is_masked, tokenizer_of
from revelio_jax.steering.state import SteeringState
from revelio_jax.steering.steering_hook import SteeringHook

Args = tuple[typing.Any, ...]
Kwargs = dict[str, typing.Any]


def before_pass(state: SteeringState, component: str, args: Args, kwargs: Kwargs) -> None:
    """Prepare the hooks of a component for its next pass, from the arguments of that pass."""
    for hook in state.hooks.values():
        if hook.point.component == component:
            if hook_points.is_denoiser_point(hook.point.name):
                hook.active = _prepare_denoiser(state, hook, args, kwargs)
            else:
                hook.active = _prepare_text_encoder(state, hook, args, kwargs)


def _prepare_text_encoder(
    state: SteeringState, hook: SteeringHook, args: Args, kwargs: Kwargs
) -> tuple[AttachedPoint, ...]:
    """Return the attached points that act on the branch whose prompt is being encoded."""
    if state.encoded_branch is None:
        return ()
    # Encoding a concept for a new prompt length runs this encoder, which must not be steered then.
    branch, state.encoded_branch = state.encoded_branch, None
    try:
        ids_BT = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        active: list[AttachedPoint] = []
        for attached in hook.attached_points:
            weights = attached.attachment.weights(branch)
            if not weights or attached.is_idle:
                continue
            attached.attachment.set_tokens(ids_BT.shape[1])
            attached.set_weights([(weight,) for weight in weights])
            attached.set_positions(_steered_tokens(state.pipe, attached, ids_BT, kwargs.get("attention_mask")))
            active.append(attached)
        return tuple(active)
    finally:
        state.encoded_branch = branch


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


def _prepare_denoiser(
    state: SteeringState, hook: SteeringHook, args: Args, kwargs: Kwargs
) -> tuple[AttachedPoint, ...]:
    """Return the attached points that act at the timestep of this pass, on the rows of each branch of guidance."""
    call = state.call
    if call is None:
        return ()
    denoiser = getattr(state.pipe, hook.point.component)
    latents = _argument(denoiser, "hidden_states", args, kwargs)
    rows = state.family.pass_branches(state.pipe, call.arguments, call.named_branches[-1], len(latents))
    active: list[AttachedPoint] = []
    for attached in hook.attached_points:
        where, factor = attached.attachment.where, 1.0
        if where.follows_timestep:
            timestep = float(_argument(denoiser, "timestep", args, kwargs).flatten()[0])
            factor = where.factor(timestep * state.family.timestep_scale)
        weights = {branch: attached.attachment.weights(branch) for branch in rows}
        if factor == 0 or not any(weights.values()):
            continue
        attached.set_weights(_weights_of_rows(weights, rows, factor, len(attached.attachment.concepts)))
        if isinstance(where.positions, torch.Tensor):
            attached.set_positions(where.positions[None, :, None])
        if where.mask is not None:
            hook.grid = call.image_grid = call.image_grid or state.family.image_grid(denoiser, latents, kwargs)
        active.append(attached)
    return tuple(active)


def _weights_of_rows(
    weights: dict[str, list[float]], rows: dict[str, slice], factor: float, concepts: int
) -> list[tuple[float, ...]]:
    """Return the weight of each concept on each row of the batch."""
    zeros = [0.0] * concepts
    weights_of_rows: list[list[float]] = [[] for _ in zeros]
    for branch in sorted(rows, key=lambda branch: rows[branch].start):
        count = rows[branch].stop - rows[branch].start
        for of_concept, weight in zip(weights_of_rows, weights[branch] or zeros, strict=True):
            of_concept += [factor * weight] * count
    return [tuple(of_concept) for of_concept in weights_of_rows]


def _argument(denoiser: torch.nn.Module, name: str, args: Args, kwargs: Kwargs) -> torch.Tensor:
    """Return an argument of a denoiser's call; the latents are called sample or hidden_states."""
    forward = getattr(denoiser, "_orig_mod", denoiser).forward
    arguments = inspect.signature(forward).bind(*args, **kwargs).arguments
    return torch.as_tensor(
        arguments["sample"] if name == "hidden_states" and "sample" in arguments else arguments[name]
    )
