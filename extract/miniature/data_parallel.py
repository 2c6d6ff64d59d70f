"""Data-parallel training on the cores of one machine.

One single-threaded process per core, with averaged gradients, trains these small networks about 1.5 times as fast as
one process with as many threads.
"""

import pathlib
import tempfile
from collections.abc import Callable, Iterable

import torch
import torch.distributed
from torch.multiprocessing.spawn import spawn


def run(function: Callable[..., None], workers: int, *args: object) -> None:
    """Call ``function(rank, workers, *args)`` in ``workers`` processes and wait for all."""
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = pathlib.Path(folder, "rendezvous").as_uri()
        spawn(_enter, (function, workers, rendezvous, args), workers)


def schedule(step: int, steps: int) -> float:
    """Return the learning rate as a share of its peak: a rise over 100 steps, and a fall to 2 % in the second half."""
    return min(1, (step + 1) / 100) * max(0.02, min(1, 2 * (1 - step / steps)))


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the workers, in one all-reduce."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def move_averages(averages: list[torch.nn.Parameter], parameters: list[torch.nn.Parameter], share: float) -> None:
    """Move every average by ``share`` of the way to its parameter, in place."""
    # It has no public name, and torch declares lists of tensors but not of parameters.
    torch._foreach_lerp_(averages, parameters, share)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _enter(rank: int, function: Callable[..., None], workers: int, rendezvous: str, args: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    function(rank, workers, *args)
    torch.distributed.destroy_process_group()
