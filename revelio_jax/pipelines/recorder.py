"""Record the activations of several hook points of a denoiser during its own forward passes.

The recorder reads the timestep of a pass from the denoiser's arguments, and the family defines the rows of the
conditional branch. The number and the order of the passes do not matter.
"""

import contextlib
import inspect
import typing
from collections.abc import Generator, Mapping

import torch

from revelio_jax.config import ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import guidance
from revelio_jax.pipelines.families import Family, family_of
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.pipelines.loading import DTYPES

Recording = dict[int, dict[str, torch.Tensor]]
"""Activations [sample, position, d] by timestep and hook point."""


class RecordingComplete(Exception):
    """Raised to end a forward pass or a sampling loop when all activations are recorded."""


@contextlib.contextmanager
def record(
    pipe: typing.Any,
    points: list[HookPoint],
    timesteps: Mapping[float, int | None],
    samples: int,
    extract: ExtractConfig,
    stop: bool,
) -> Generator[Recording]:
    """Yield a recording that fills while the pipeline's denoiser runs on ``samples`` samples in the block.

    ``timesteps`` maps each value that the denoiser may receive to the timestep to record, or to None to skip it. The
    nearest key is used, because half precision rounds timesteps. Only the first pass at a timestep and only its
    conditional branch are recorded. With ``stop`` the block ends without an error when all activations are recorded.
    """
    family = family_of(pipe)
    denoiser = family.denoiser_of(pipe)
    all_timesteps = {timestep for timestep in timesteps.values() if timestep is not None}
    recording: Recording = {}
    current: int | None = None

    def read_timestep(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal current
        timestep = inspect.signature(module.forward).bind(*args, **kwargs).arguments["timestep"]
        value = float(torch.as_tensor(timestep).flatten()[0])
        current = timesteps[min(timesteps, key=lambda key: abs(key - value))]

    with contextlib.ExitStack() as stack:
        branch = stack.enter_context(guidance.named_branches(denoiser))
        stack.callback(denoiser.register_forward_pre_hook(read_timestep, with_kwargs=True).remove)
        for point in points:

            def record_output(_module, args, kwargs, output, point: HookPoint = point) -> None:
                is_conditional = branch[-1] != guidance.UNCONDITIONAL
                if current is None or not is_conditional or point.name in recording.get(current, {}):
                    return
                hidden = _conditional(point.read(output), samples, family)
                if extract.value == "difference":
                    hidden = hidden.float() - _conditional(point.read_input(args, kwargs), samples, family).float()
                if extract.pool == "mean":
                    hidden = hidden.float().mean(1, keepdim=True)
                recording.setdefault(current, {})[point.name] = hidden.to(DTYPES[extract.dtype]).cpu()
                if (
                    stop
                    and len(recording) == len(all_timesteps)
                    and all(len(r) == len(points) for r in recording.values())
                ):
                    raise RecordingComplete

            handle = point.module.register_forward_hook(record_output, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        with contextlib.suppress(RecordingComplete):
            yield recording


def _conditional(hidden: torch.Tensor, samples: int, family: Family) -> torch.Tensor:
    """Return the rows of the conditional branch: all rows, or one half of them with guidance."""
    if len(hidden) == samples:
        return hidden
    if len(hidden) != 2 * samples:
        raise InputError(
            f"the denoiser ran on {len(hidden)} rows for {samples} prompts, so the rows of the prompts are unknown; "
            "config.extract.mode=generate needs one or two rows for each prompt"
        )
    return hidden[family.branches(len(hidden), guided=True)[guidance.CONDITIONAL]]
