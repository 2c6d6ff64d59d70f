"""Which latents fire where: on the tokens of a prompt, or on a picture at each timestep."""

import dataclasses

import numpy as np
import torch

from revelio_jax.pipelines.tokens import PADDING
from revelio_jax.steering.sae import Sae

ROWS = 1024  # encoded at a time: a matrix of all positions and latents may not fit in memory


@dataclasses.dataclass(frozen=True, eq=False)
class ActiveLatents:
    """What is above 0 of the latents [steps, positions, F] of one prompt or picture, sorted by latent.

    ``timesteps`` are those of a denoiser, () for a text encoder, which runs once. ``tokens`` and ``kinds``
    are of the positions where they are tokens, ``grid`` their height and width where they are a map; both
    None: a stream that is neither. ``empty`` [F] is the largest value of each latent on the empty prompt.
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
        """The values of a latent, float32 [steps, positions]."""
        values = np.zeros(self.shape, np.float32)
        here = slice(*np.searchsorted(self.latent, [latent, latent + 1]))
        values[self.step[here], self.position[here]] = self.value[here]
        return values

    def strongest(self, top: int, position: int | None = None) -> list[dict[str, float]]:
        """The ``top`` latents by their largest value beyond that on the empty prompt.

        Of one position where it is given; else of all but padding. Rows are {latent, value, empty, step,
        position}, where that value is, and ``share`` of the positions on which it fires at some step.
        """
        counts = np.ones(len(self.latent), bool)
        if position is not None:
            counts = self.position == position
        elif self.kinds is not None:
            counts = self.kinds[self.position] != PADDING
        latent, value = self.latent[counts], self.value[counts]
        step, position = self.step[counts], self.position[counts]
        order = np.lexsort((-value, latent))
        first = order[np.unique(latent[order], return_index=True)[1]]  # a latent's largest value
        more = value[first] - self.empty[latent[first]]
        first = first[np.argsort(-more, kind="stable")][:top]
        rows = []
        for at in first.tolist():
            here = latent == latent[at]
            rows.append(
                {
                    "latent": int(latent[at]),
                    "value": float(value[at]),
                    "empty": float(self.empty[latent[at]]),
                    "step": int(step[at]),
                    "position": int(position[at]),
                    "share": len(np.unique(position[here])) / self.shape[1],
                }
            )
        return rows


@torch.inference_mode()
def fired(
    sae: Sae,
    activations: list[torch.Tensor],
    *,
    timesteps: tuple[int, ...] = (),
    tokens: tuple[str, ...] | None = None,
    kinds: np.ndarray | None = None,
    grid: tuple[int, int] | None = None,
    empty: np.ndarray | None = None,
) -> ActiveLatents:
    """Encode activations [positions, D], one of each step."""
    found: list[tuple[np.ndarray, ...]] = []
    for step, x_PD in enumerate(activations):
        for start in range(0, len(x_PD), ROWS):
            codes_PF = sae.codes(x_PD[start : start + ROWS].to(sae.W_dec_FD.device))
            position, latent = codes_PF.nonzero(as_tuple=True)
            value = codes_PF[position, latent].cpu().numpy()
            position, latent = position.cpu().numpy() + start, latent.cpu().numpy()
            found.append((latent, np.full(len(latent), step), position, value))
    latent, step, position, value = (np.concatenate(column) for column in zip(*found, strict=True))
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
    """Height and width of a site's positions over latents of height x width; None where they are no map."""
    factor, grid = 1, (0, 0)
    while grid != (1, 1):
        grid = -(-height // factor), -(-width // factor)
        if grid[0] * grid[1] == positions:
            return grid
        factor *= 2
    return None
