"""Matched prompts: for each prompt with a concept a similar prompt without it, aligned token by token.

N prompts, M candidates, T tokens, V different tokens.
"""

import difflib
from collections.abc import Sequence

import numpy as np
import torch

from revelio_jax.steering.labels import LabeledPrompt

MOST_SIMILAR = 12  # candidates by their tokens and labels; the order of tokens is compared for these only
TOLERANCE = 0.95  # candidates at least this similar to a prompt, relative to its best one, count as equally similar


def similar_candidates(
    ids_NT: torch.Tensor,
    candidate_ids_MT: torch.Tensor,
    rows: Sequence[LabeledPrompt],
    candidates: Sequence[LabeledPrompt],
    column: str,
) -> list[list[int]]:
    """Return the numbers of the most similar candidates for each prompt; all of them are about equally similar.

    The labels of ``rows`` and ``candidates`` except ``column`` count first, so that the match keeps them. Then counts
    the cosine of the bags of tokens, weighted by their rarity, and the order of the tokens.
    """
    bags_NV, bags_MV = _bags(ids_NT, candidate_ids_MT)
    similar_NM = bags_NV @ bags_MV.T
    for name in set(rows[0]) - {"prompt", column}:
        similar_NM += torch.from_numpy(_equal([row[name] for row in rows], [row[name] for row in candidates]))
    best = similar_NM.topk(min(MOST_SIMILAR, len(candidates)), dim=1)
    ids, candidate_ids = ids_NT.tolist(), candidate_ids_MT.tolist()
    chosen: list[list[int]] = []
    for prompt, values, numbers in zip(ids, best.values.tolist(), best.indices.tolist(), strict=True):
        scores = [_order(prompt, candidate_ids[i]) * value for i, value in zip(numbers, values, strict=True)]
        chosen.append([i for i, score in zip(numbers, scores, strict=True) if score >= TOLERANCE * max(scores)])
    return chosen


def choose_one_side(means_MD: torch.Tensor, groups: list[list[int]], axis_D: torch.Tensor) -> list[int]:
    """Return one number of each group of equally similar candidates, all on the same side.

    Candidates can differ, for example in style. The mean of several styles is none of them, so each group gives its
    candidate that lies farthest along the direction in which the candidates of a group differ most. Its sign is that of
    ``axis_D``. ``means_MD`` are the mean activations of the candidates.
    """
    deviations = torch.cat([means_MD[group] - means_MD[group].mean(0) for group in groups])
    side_D = torch.linalg.svd(deviations, full_matrices=False).Vh[0]
    side_D = torch.where(side_D @ axis_D < 0, -side_D, side_D)
    along_M = (means_MD @ side_D).tolist()
    return [max(group, key=lambda i: along_M[i]) for group in groups]


def align(ids_NT: torch.Tensor, other_ids_NT: torch.Tensor, padding: int | None) -> torch.Tensor:
    """Return the position in the other prompt for every position of a prompt, int64 [N, T].

    Equal tokens and replaced tokens are aligned in their order. A token that the other prompt lacks is aligned with its
    last position, which is padding in all but the longest prompts. Tokens that only the other prompt has are aligned
    with the last positions of the prompt, because a denoiser attends to tokens at any position.
    """
    aligned = [_align(ids, other, padding) for ids, other in zip(ids_NT.tolist(), other_ids_NT.tolist(), strict=True)]
    return torch.from_numpy(np.stack(aligned))


def _align(ids: list[int], other: list[int], padding: int | None) -> np.ndarray:
    length = len(ids)
    position_T = np.full(length, length - 1)
    is_used = np.zeros(length, bool)
    matcher = difflib.SequenceMatcher(None, ids, other, autojunk=False)
    for kind, start, stop, other_start, other_stop in matcher.get_opcodes():
        if kind in ("equal", "replace"):
            count, others = stop - start, other_stop - other_start
            for i in range(count):
                j = other_start + (i * others // count if count > others else i)
                position_T[start + i] = j
                is_used[j] = True
    only_other = [j for j in range(length) if not is_used[j] and other[j] != padding]
    for i, j in enumerate(only_other[: length // 4]):
        position_T[length - 1 - i] = j
    return position_T


def _order(ids: list[int], other: list[int]) -> float:
    """Return the share of tokens in the same order, padding included: 0 .. 1."""
    return difflib.SequenceMatcher(None, ids, other, autojunk=False).ratio()


def _equal(values: list[str], others: list[str]) -> np.ndarray:
    """Return 1 where a value equals another one, float32 [N, M]."""
    return (np.array(values)[:, None] == np.array(others)[None]).astype(np.float32)


def _bags(ids_NT: torch.Tensor, other_ids_MT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bags of tokens, weighted by the inverse document frequency and normalized: [N, V] and [M, V]."""
    _, inverse = torch.cat([ids_NT, other_ids_MT]).unique(return_inverse=True)
    bags = torch.zeros(len(inverse), int(inverse.max()) + 1).scatter_(1, inverse, 1.0)
    bags = bags * (len(bags) / bags.sum(0)).log()
    bags = bags / bags.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return bags[: len(ids_NT)], bags[len(ids_NT) :]
