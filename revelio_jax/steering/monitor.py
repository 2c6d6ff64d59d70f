"""Record which latents fire while a pipeline runs: in which pass, branch and timestep, and at which position.

    with steerer.watch(pipe) as codes:
        pipe("a glossy 3d emoji of a red apple")
    codes.strongest(5)
    codes.heatmap(17)

The codes are those of the activations before steering. Only the latents that fire are kept, on the CPU.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Generator, Sequence

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines.guidance import CONDITIONAL
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.steering.attachment import BRANCHES
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.session import watching
from revelio_jax.steering.steering_hook import Pass

ROWS = 1024  # activations that are encoded together, so that dense codes stay small
MAX_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class WatchedPass:
    """The latents that fire in one pass.

    ``latents`` and ``values`` [B, T, K] are the numbers of the latents and their values, int32 and float32, on the CPU;
    unused slots have the value 0. ``branches`` has the branch of guidance of each row. ``timestep`` is between 1000
    (noise) and 0 (image), and None in a text encoder. ``grid`` is the height and width of the image in positions, None
    for text.
    """

    latents: torch.Tensor
    values: torch.Tensor
    branches: list[str]
    timestep: float | None
    grid: tuple[int, int] | None

    def rows(self, branch: str) -> list[int]:
        """Return the rows of a branch."""
        return [row for row, each in enumerate(self.branches) if each == branch]

    def of(self, latent: int) -> torch.Tensor:
        """Return the values of one latent, [B, T]."""
        return torch.where(self.latents == latent, self.values, 0.0).sum(-1)


class WatchedCodes:
    """The passes of the hook point of one SAE, in the order in which they ran."""

    def __init__(self, n_latents: int, latents: Sequence[int] | None, max_bytes: int):
        self.passes: list[WatchedPass] = []
        self.n_latents, self.max_bytes = n_latents, max_bytes
        self._kept = None if latents is None else torch.tensor(sorted({*latents}), dtype=torch.int32)
        self._bytes = 0

    def add(self, x_BTD: torch.Tensor, current: Pass, sae: Sae) -> None:
        """Add the codes of a pass. Raise InputError if they need more memory than ``max_bytes``."""
        parts = [self._sparse(sae.codes(rows)) for rows in x_BTD.flatten(0, 1).split(ROWS)]
        slots = max(values.shape[1] for _, values in parts)
        padded = [torch.nn.functional.pad(values, (0, slots - values.shape[1])) for _, values in parts]
        numbers = [torch.nn.functional.pad(latents, (0, slots - latents.shape[1])) for latents, _ in parts]
        self._bytes += 2 * 4 * slots * len(x_BTD) * x_BTD.shape[1]
        if self._bytes > self.max_bytes:
            raise InputError(
                f"max_bytes is {self.max_bytes}, and the codes of {len(self.passes) + 1} passes need {self._bytes}; "
                "raise it, or watch only some latents with latents=[...]"
            )
        shape = (*x_BTD.shape[:2], slots)
        latents_BTK, values_BTK = torch.cat(numbers).reshape(shape), torch.cat(padded).reshape(shape)
        self.passes.append(WatchedPass(latents_BTK, values_BTK, current.branches, current.timestep, current.grid))

    def _sparse(self, codes_RF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return numbers and values of the latents that fire, [rows, slots]."""
        if self._kept is not None:
            values = codes_RF[:, self._kept.to(codes_RF.device).long()].cpu()
            return self._kept.expand_as(values), values
        slots = max(1, int((codes_RF != 0).sum(1).max()))
        values, latents = codes_RF.topk(slots)
        return latents.int().cpu(), values.cpu()

    def strongest(self, count: int = 20, branch: str = CONDITIONAL) -> list[tuple[int, float]]:
        """Return the latents with the largest sum over all passes and positions of a branch, with their sums."""
        _check_branch(branch)
        sums_F = torch.zeros(self.n_latents)
        for one in self.passes:
            rows = one.rows(branch)
            sums_F.index_add_(0, one.latents[rows].flatten(), one.values[rows].flatten())
        values, latents = sums_F.topk(min(count, self.n_latents))
        return [(latent, value) for latent, value in zip(latents.tolist(), values.tolist(), strict=True) if value > 0]

    def heatmap(self, latent: int, branch: str = CONDITIONAL, row: int = 0) -> torch.Tensor:
        """Return the mean value of a latent over all passes at each position: [height, width], or [T] for text.

        ``row`` counts the images of the branch. Raise InputError if the latent or the row was not watched.
        """
        _check_branch(branch)
        watched = range(self.n_latents) if self._kept is None else self._kept.tolist()
        if latent not in watched:
            raise InputError(f"latent {latent} was not watched; watched: {_abbreviated(watched)}")
        chosen = [(one, one.rows(branch)) for one in self.passes if one.rows(branch)]
        if not chosen or not all(0 <= row < len(rows) for _, rows in chosen):
            raise InputError(
                f"row is {row}; the {branch} branch has {min([len(r) for _, r in chosen], default=0)} rows"
            )
        mean_T = torch.stack([one.of(latent)[rows[row]] for one, rows in chosen]).mean(0)
        grid = chosen[0][0].grid
        return mean_T if grid is None else mean_T[: grid[0] * grid[1]].reshape(grid)


@contextlib.contextmanager
def watch(
    pipe: typing.Any,
    points: tuple[HookPoint, ...],
    sae_on: Callable[[torch.device | None], Sae],
    latents: Sequence[int] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Generator[WatchedCodes]:
    """Yield the codes of all passes at hook points that share one SAE, for calls of ``pipe`` in the block.

    ``sae_on`` returns the SAE on a device. ``latents`` limits recording to these latents. Raise InputError if a latent
    does not exist, and in the call if the codes need more than ``max_bytes`` bytes.
    """
    sae = sae_on(None)
    for latent in latents or ():
        if not 0 <= latent < sae.n_latents:
            raise InputError(f"latent {latent} is out of range: this SAE has latents 0-{sae.n_latents - 1}")
    codes = WatchedCodes(sae.n_latents, latents, max_bytes)
    waiting: dict[str, torch.Tensor] = {}  # activations of joined hook points, until all of them are there

    def on_pass(name: str, current: Pass, x_BTD: torch.Tensor) -> None:
        waiting[name] = x_BTD
        if len(waiting) == len(points):
            device = x_BTD.device
            joined_BTD = torch.cat([waiting[point.name].to(device) for point in points], dim=-1)
            waiting.clear()
            codes.add(joined_BTD, current, sae_on(device))

    with (
        torch.compiler.set_stance("force_eager"),
        watching(pipe, points, on_pass, difference=sae.reads_difference),
    ):
        yield codes


def _check_branch(branch: str) -> None:
    if branch not in BRANCHES:
        raise InputError(f"branch is {branch!r}; allowed: {', '.join(BRANCHES)}")


def _abbreviated(numbers: Sequence[int]) -> str:
    return f"0-{len(numbers) - 1}" if isinstance(numbers, range) else ", ".join(map(str, numbers))
