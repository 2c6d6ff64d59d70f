"""Activations of several sites of a denoiser, as its own forward passes leave them.

Both modes that run a denoiser record with :func:`recorded`. Which timestep a pass is at is read from
the denoiser's arguments, and which of its rows are the prompt's from the layout of the batch, so
nothing here depends on how often, or in which order, a pipeline calls its denoiser.
"""

import contextlib
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch

from extract import work
from extract.denoiser import Shape
from extract.pipelines import DTYPES, as_numpy
from extract.work import Rows
from revelio_jax import guidance, sites
from revelio_jax.config import Extract
from revelio_jax.sites import Site
from revelio_jax.store import StorePlan

# Activations [sample, position, d] by timestep and site.
Found = dict[int, dict[str, torch.Tensor]]


class Complete(Exception):
    """Ends a forward pass, or a whole sampling loop: all that is wanted is there."""


@contextlib.contextmanager
def recorded(
    pipe: typing.Any,
    wanted: list[Site],
    timesteps: Mapping[float, int | None],
    samples: int,
    extract: Extract,
    stop: bool,
) -> Iterator[Found]:
    """A mapping that fills while the pipeline's denoiser runs on ``samples`` samples in the block.

    ``timesteps`` maps each value that the denoiser may be called with to the timestep that its
    activations are kept under, None where they are not; the nearest counts, since a half-precision
    timestep is rounded. A timestep that comes up twice is kept the first time. Only the conditional
    branch is kept. With ``stop`` the block ends, without an error, when all that is wanted is there.
    """
    layout = sites.family(pipe)
    denoiser = getattr(pipe, sites.DENOISERS[layout])
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

            def after(_module, args, kwargs, output, site: Site = site) -> None:
                if now is None or branch[-1] == guidance.UNCONDITIONAL or site.name in found.get(now, {}):
                    return
                hidden = _conditional(site.read(output), samples, layout)
                if extract.value == "difference":
                    hidden = (
                        hidden.float() - _conditional(site.read_input(args, kwargs), samples, layout).float()
                    )
                if extract.pool == "mean":
                    hidden = hidden.float().mean(1, keepdim=True)
                found.setdefault(now, {})[site.name] = hidden.to(DTYPES[extract.dtype]).cpu()
                if (
                    stop
                    and len(found) == len(complete)
                    and all(len(f) == len(wanted) for f in found.values())
                ):
                    raise Complete

            handle = site.module.register_forward_hook(after, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        with contextlib.suppress(Complete):
            yield found


def plan(
    extract: Extract,
    shapes: dict[str, Shape],
    timesteps: tuple[int, ...],
    samples: int,
    facts: dict[str, typing.Any],
) -> StorePlan:
    """The plan of a store whose rows :func:`rows` makes, as many for every sample."""
    fields = {name: getattr(extract, name) for name in ("mode", "value", "pool", "height", "width")}
    fields |= {"timesteps": list(timesteps)}
    each = {
        name: len(timesteps) * (1 if extract.pool == "mean" else shape.positions)
        for name, shape in shapes.items()
    }
    planned = {name: (shape.d, np.full(samples, each[name])) for name, shape in shapes.items()}
    return work.plan(extract, planned, facts | {"extract": fields | facts["extract"]})


def rows(
    batches: Iterable[tuple[list[int], Found]],
    shapes: dict[str, Shape],
    timesteps: tuple[int, ...],
    samples: range,
    extract: Extract,
) -> Rows:
    """The rows of a shard, by sample, then timestep, then position.

    A batch is the numbers of its samples and what was recorded of them; those of ``samples`` that are in
    none were skipped. A mean over positions has position -1.
    """
    pooled = extract.pool == "mean"
    kept = {}
    for name, shape in shapes.items():
        size = (len(samples), len(timesteps), 1 if pooled else shape.positions, shape.d)
        kept[name] = torch.empty(size, dtype=DTYPES[extract.dtype])
    numbers: list[int] = []
    for batch, found in batches:
        here = slice(len(numbers), len(numbers) + len(batch))
        for name, array in kept.items():
            for i, timestep in enumerate(timesteps):
                array[here, i] = found[timestep][name]
        numbers += batch
    shard = {}
    for name, array in kept.items():
        count = array.shape[2]
        position = np.full(1, -1, np.int32) if pooled else np.arange(count, dtype=np.int32)
        shard[name] = {
            "activations": as_numpy(array[: len(numbers)].flatten(0, 2)),
            "sample": np.repeat(np.asarray(numbers, np.int32), len(timesteps) * count),
            "timestep": np.tile(np.repeat(np.asarray(timesteps, np.int32), count), len(numbers)),
            "position": np.tile(position, len(numbers) * len(timesteps)),
            "skipped": np.setdiff1d(np.asarray(samples, np.int32), np.asarray(numbers, np.int32)),
        }
    return shard


def _conditional(hidden: torch.Tensor, samples: int, layout: str) -> torch.Tensor:
    """The rows of a batch that see the prompt: all, or under guidance one half."""
    if len(hidden) == samples:
        return hidden
    if len(hidden) != 2 * samples:
        raise ValueError(f"{samples} samples, but the denoiser ran on a batch of {len(hidden)}")
    return hidden[guidance.branches(layout, len(hidden), guided=True)[guidance.CONDITIONAL]]
