"""Activations of several sites of a denoiser, as its own forward passes leave them.

Both modes that run a denoiser record with :func:`recorded`. Which timestep a pass is at is read from
the denoiser's arguments, and which of its rows are the prompt's from the layout of the batch, so
nothing here depends on how often, or in which order, a pipeline calls its denoiser.
"""

import contextlib
import inspect
import typing
from collections.abc import Iterator, Mapping

import torch

from revelio_jax.config import ExtractConfig
from revelio_jax.pipelines import guidance, hook_points
from revelio_jax.pipelines.hook_points import HookPoint
from revelio_jax.pipelines.loading import DTYPES

# Activations [sample, position, d] by timestep and site.
Found = dict[int, dict[str, torch.Tensor]]


class RecordingComplete(Exception):
    """Ends a forward pass, or a whole sampling loop: all that is wanted is there."""


@contextlib.contextmanager
def recorded(
    pipe: typing.Any,
    wanted: list[HookPoint],
    timesteps: Mapping[float, int | None],
    samples: int,
    extract: ExtractConfig,
    stop: bool,
) -> Iterator[Found]:
    """A mapping that fills while the pipeline's denoiser runs on ``samples`` samples in the block.

    ``timesteps`` maps each value that the denoiser may be called with to the timestep that its
    activations are kept under, None where they are not; the nearest counts, since a half-precision
    timestep is rounded. A timestep that comes up twice is kept the first time. Only the conditional
    branch is kept. With ``stop`` the block ends, without an error, when all that is wanted is there.
    """
    layout = hook_points.family(pipe)
    denoiser = getattr(pipe, hook_points.DENOISERS[layout])
    complete = {timestep for timestep in timesteps.values() if timestep is not None}
    found: Found = {}
    now: int | None = None

    def before(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal now
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments["timestep"]
        value = float(torch.as_tensor(given).flatten()[0])
        now = timesteps[min(timesteps, key=lambda known: abs(known - value))]

    with contextlib.ExitStack() as stack:
        branch = stack.enter_context(guidance.told(denoiser))
        stack.callback(denoiser.register_forward_pre_hook(before, with_kwargs=True).remove)
        for site in wanted:

            def after(_module, args, kwargs, output, site: HookPoint = site) -> None:
                if now is None or branch[-1] == guidance.UNCONDITIONAL or site.name in found.get(now, {}):
                    return
                hidden = _conditional(site.read(output), samples, layout)
                if extract.value == "difference":
                    hidden = hidden.float() - _conditional(site.read_input(args, kwargs), samples, layout).float()
                if extract.pool == "mean":
                    hidden = hidden.float().mean(1, keepdim=True)
                found.setdefault(now, {})[site.name] = hidden.to(DTYPES[extract.dtype]).cpu()
                if stop and len(found) == len(complete) and all(len(f) == len(wanted) for f in found.values()):
                    raise RecordingComplete

            handle = site.module.register_forward_hook(after, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        with contextlib.suppress(RecordingComplete):
            yield found


def _conditional(hidden: torch.Tensor, samples: int, layout: str) -> torch.Tensor:
    """The rows of a batch that see the prompt: all, or under guidance one half."""
    if len(hidden) == samples:
        return hidden
    if len(hidden) != 2 * samples:
        raise ValueError(f"{samples} samples, but the denoiser ran on a batch of {len(hidden)}")
    return hidden[guidance.branches(layout, len(hidden), guided=True)[guidance.CONDITIONAL]]
