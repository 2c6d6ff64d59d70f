"""How similar the directions of an SAE are to each other."""

import typing

import numpy as np

SAMPLE = 1024  # latents whose largest cosine is computed; all pairs of 65,536 latents would take minutes on a CPU


class Redundancy(typing.TypedDict):
    """Quartiles of the largest cosine of a decoder row with another one, over ``latents`` of those that fire."""

    latents: int
    quartiles: list[float]


def redundancy(W_dec_FD: np.ndarray, fires_F: np.ndarray) -> Redundancy | None:
    """Return how similar the decoder rows of the firing latents are, or None if fewer than two fire.

    ``W_dec_FD`` is float32 [F, D] and ``fires_F`` bool [F]. At most 1,024 latents, drawn at random, are compared with
    all others.
    """
    W_dec_FD = W_dec_FD[fires_F]
    if len(W_dec_FD) < 2:
        return None
    W_dec_FD = W_dec_FD / np.maximum(np.linalg.norm(W_dec_FD, axis=1, keepdims=True), 1e-30)
    count = min(SAMPLE, len(W_dec_FD))
    some = np.random.default_rng(0).choice(len(W_dec_FD), count, replace=False)
    cosine_NF = W_dec_FD[some] @ W_dec_FD.T
    cosine_NF[np.arange(count), some] = -np.inf
    return {"latents": count, "quartiles": np.quantile(cosine_NF.max(1), (0.25, 0.5, 0.75)).tolist()}
