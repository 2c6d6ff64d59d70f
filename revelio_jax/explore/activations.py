"""Find the latents that fire on the tokens of a prompt, or in an image at each timestep."""

import dataclasses
import typing

import numpy as np
import torch

from revelio_jax.pipelines.tokens import PADDING
from revelio_jax.steering.sae import Sae

ROWS = 1024  # rows encoded at once; the matrix of all positions and latents may not fit in memory


class LatentSummary(typing.TypedDict):
    """A latent that fires: its largest ``value``, and the ``step`` and ``position`` of that value.

    ``empty`` is its largest value on the empty prompt. ``share`` is the share of positions on which it fires.
    """

    latent: int
    value: float
    empty: float
    step: int
    position: int
    share: float


@dataclasses.dataclass(frozen=True, eq=False)
class ActiveLatents:
    """The latents that fire on a prompt or image: entries above 0 of codes [steps, positions, F], sorted by latent.

    Value i belongs to latent ``latent[i]`` at ``step[i]`` and ``position[i]``; ``shape`` is (steps, positions).
    ``timesteps`` are the denoiser's timesteps, () for a text encoder, which runs once. If the positions are tokens,
    ``tokens`` and ``kinds`` describe them. If they form a map of an image, ``grid`` is its height and width.
    ``empty`` [F] is the largest value of each latent on the empty prompt.
    """

    latent: np.ndarray
    step: np.ndarray
    position: np.ndarray
    value: np.ndarray
    shape: tuple[int, int]
    timesteps: tuple[int, ...]
    tokens: tuple[str, ...] | None
    kinds: np.ndarray | None
    grid: tuple[int, int] | None
    empty: np.ndarray

    def map(self, latent: int) -> np.ndarray:
        """Return the values of a latent, float32 [steps, positions]."""
        values = np.zeros(self.shape, np.float32)
        entries = slice(*np.searchsorted(self.latent, [latent, latent + 1]))
        values[self.step[entries], self.position[entries]] = self.value[entries]
        return values

    def strongest(self, top: int, position: int | None = None) -> list[LatentSummary]:
        """Return the ``top`` latents by their largest value minus the largest on the empty prompt.

        ``position`` restricts the values to one position; by default all positions count except padding.
        """
        counts = np.ones(len(self.latent), bool)
        if position is not None:
            counts = self.position == position
        elif self.kinds is not None:
            counts = self.kinds[self.position] != PADDING
        latent, value = self.latent[counts], self.value[counts]
        step, positions = self.step[counts], self.position[counts]
        order = np.lexsort((-value, latent))
        largest = order[np.unique(latent[order], return_index=True)[1]]  # the largest value of each latent
        excess = value[largest] - self.empty[latent[largest]]
        largest = largest[np.argsort(-excess, kind="stable")][:top]
        return [
            {
                "latent": int(latent[i]),
                "value": float(value[i]),
                "empty": float(self.empty[latent[i]]),
                "step": int(step[i]),
                "position": int(positions[i]),
                "share": len(np.unique(positions[latent == latent[i]])) / self.shape[1],
            }
            for i in largest.tolist()
        ]


@torch.inference_mode()
def find_active(
    sae: Sae,
    activations: list[torch.Tensor],
    *,
    timesteps: tuple[int, ...] = (),
    tokens: tuple[str, ...] | None = None,
    kinds: np.ndarray | None = None,
    grid: tuple[int, int] | None = None,
    empty: np.ndarray | None = None,
) -> ActiveLatents:
    """Encode activations [positions, D] of each step; the other arguments are fields of the result."""
    parts: list[tuple[np.ndarray, ...]] = []
    for step, x_PD in enumerate(activations):
        for start in range(0, len(x_PD), ROWS):
            codes_PF = sae.codes(x_PD[start : start + ROWS].to(sae.W_dec_FD.device))
            position, latent = codes_PF.nonzero(as_tuple=True)
            value = codes_PF[position, latent].cpu().numpy()
            position, latent = position.cpu().numpy() + start, latent.cpu().numpy()
            parts.append((latent, np.full(len(latent), step), position, value))
    latent, step, position, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(latent, kind="stable")
    return ActiveLatents(
        latent[order].astype(np.int32),
        step[order].astype(np.int32),
        position[order].astype(np.int32),
        value[order],
        (len(activations), len(activations[0])),
        timesteps,
        tokens,
        kinds,
        grid,
        np.zeros(sae.n_latents, np.float32) if empty is None else empty,
    )


def grid_of(positions: int, height: int, width: int) -> tuple[int, int] | None:
    """Return height and width of the map of a hook point's positions, or None if they do not form a map.

    ``height`` and ``width`` are the size of the diffusion latents. The map is smaller by a power of 2.
    """
    factor, grid = 1, (0, 0)
    while grid != (1, 1):
        grid = -(-height // factor), -(-width // factor)
        if grid[0] * grid[1] == positions:
            return grid
        factor *= 2
    return None
