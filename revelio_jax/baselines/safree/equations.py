"""The equations of SAFREE (Yoon et al., arXiv 2410.12761), where the paper and the released code differ.

P_C projects on the span of the concept's phrases, P_I on that of the prompt without one of its tokens each.

| | mode=paper | mode=released |
|---|---|---|
| trigger tokens | distance above (1 + alpha) times the mean of the others | at least that |
| embedding of a trigger | P_I (I - P_C) e | (I - P_C) P_I e |
| steps with changed embeddings | round(steps_bound sigmoid(beta)) | round(steps_bound sigmoid(2 k (10 beta - m))) + 1 |
| re-attention | smaller low frequencies of skip connections | switched on, but without effect |

The released code inverts Gram matrices in float32 with a pseudo-inverse. Here orthonormal bases in float64 give the
same projections without its rounding errors.
"""

import math

import torch

from revelio_jax.baselines.settings import PAPER


def basis(rows_ND: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis of the span of rows, float64 [R, D], where R is their rank."""
    rows = rows_ND.double()
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    tolerance = sizes.amax() * max(rows.shape) * torch.finfo(torch.float64).eps if len(sizes) else 0.0
    return directions[sizes > tolerance]


def project(x_TD: torch.Tensor, basis_RD: torch.Tensor) -> torch.Tensor:
    """Return the projection of rows on the span of an orthonormal basis."""
    return x_TD @ basis_RD.T @ basis_RD


def triggers(masked_ND: torch.Tensor, concept_RD: torch.Tensor, alpha: float, mode: str) -> torch.Tensor:
    """Return which of N tokens are triggers, bool [N].

    ``masked_ND`` has the pooled embedding of the prompt without token i in row i. A prompt of a single token has no
    others to compare with; the token is a trigger, as in the released code, unless ``alpha`` is infinite.
    """
    masked_ND = masked_ND.double()
    distances = (masked_ND - project(masked_ND, concept_RD)).norm(dim=1)
    if (count := len(distances)) < 2:
        return torch.full((count,), math.isfinite(alpha))
    bounds = (1 + alpha) * (distances.sum() - distances) / (count - 1)
    return distances > bounds if mode == PAPER else distances >= bounds


def away_from_concept(x_TD: torch.Tensor, concept_RD: torch.Tensor, prompt_RD: torch.Tensor, mode: str) -> torch.Tensor:
    """Return embeddings without their part in the concept's span, but within the prompt's span: float64 [T, D]."""
    x = x_TD.double()
    if mode == PAPER:
        return project(x - project(x, concept_RD), prompt_RD)
    inside = project(x, prompt_RD)
    return inside - project(inside, concept_RD)


def filtered_steps(
    x_TD: torch.Tensor, changed_TD: torch.Tensor, bound: int, calibration: tuple[float, float] | None
) -> int:
    """Return for how many of the first steps the changed embeddings are used.

    ``x_TD`` and ``changed_TD`` are the embeddings of the prompt's tokens before and after the projection of all of
    them. ``calibration`` is (k, m) of the released code, or None for the equation of the paper.
    """
    beta = 1 - torch.nn.functional.cosine_similarity(x_TD.double(), changed_TD.double()).mean().item()
    if calibration is None:
        return round(bound * _sigmoid(beta))
    k, m = calibration
    return round(bound * _sigmoid(2 * k * (10 * beta - m))) + 1  # the code compares with <=, and counts from 0


def reattend(changed_BCHW: torch.Tensor, original_BCHW: torch.Tensor, scale: float) -> torch.Tensor:
    """Return features whose lowest frequencies are scaled where they are larger than those for the original prompt.

    The lowest frequencies are the 2 x 2 ones around the center of the shifted spectrum. Their size is the modulus.
    Features that do not change keep every bit.
    """
    height, width = changed_BCHW.shape[-2:]
    rows, columns = (slice(max(size // 2 - 1, 0), size // 2 + 1) for size in (height, width))
    changed, original = (_spectrum(x) for x in (changed_BCHW, original_BCHW))
    low = changed[..., rows, columns]
    difference = torch.zeros_like(changed)
    is_larger = low.abs() > original[..., rows, columns].abs()
    difference[..., rows, columns] = torch.where(is_larger, (scale - 1) * low, torch.zeros_like(low))
    difference = torch.fft.ifft2(torch.fft.ifftshift(difference, dim=(-2, -1))).real
    return changed_BCHW + difference.to(changed_BCHW.dtype)


def _spectrum(x_BCHW: torch.Tensor) -> torch.Tensor:
    x = x_BCHW if x_BCHW.dtype == torch.float64 else x_BCHW.float()
    return torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
