"""Find the branch of guidance of each row in a pass of a denoiser, from the conditioning that the row receives.

Pipelines order the rows of a batch, and the passes of a step, in different ways: most put the negative prompt first,
InstructPix2Pix puts the prompt first and the negative prompt twice, PAG repeats the prompt, FLUX runs a pass for each
branch, and a callback may turn guidance off between two steps. The embeddings of the prompt and of the negative prompt
are known, so every row that receives them is known too.
"""

import typing

import torch

from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL

UNKNOWN = "unknown"
"""The branch of a row that receives neither the prompt nor the negative prompt."""
EQUAL = "equal"
"""The branch of a row whose prompt equals the negative prompt."""


def branch_of(is_prompt: bool, is_negative: bool) -> str:
    """Return the branch of a row that is the prompt, the negative prompt, both or neither."""
    if is_prompt and is_negative:
        return EQUAL
    return CONDITIONAL if is_prompt else UNCONDITIONAL if is_negative else UNKNOWN


class Branches:
    """The embeddings of the prompt and of the negative prompt of one call.

    A tensor is compared once. Pipelines pass the same tensor in every step, so later passes cost nothing.
    """

    def __init__(self):
        self._known: dict[str, list[torch.Tensor]] = {CONDITIONAL: [], UNCONDITIONAL: []}
        self._found: list[tuple[torch.Tensor, int, list[str]]] = []

    def add(self, branch: str, embeddings: typing.Any) -> None:
        """Add the embeddings [rows, ...] of a branch; None adds nothing."""
        if isinstance(embeddings, torch.Tensor):
            self._known[branch].append(embeddings)
            self._found.clear()

    def of_rows(self, embeddings: torch.Tensor) -> list[str]:
        """Return the branch of each row of ``embeddings`` [rows, ...], UNKNOWN or EQUAL."""
        version = 0 if embeddings.is_inference() else embeddings._version
        for tensor, seen, branches in self._found:
            if tensor is embeddings and seen == version:
                return branches
        branches = self._compare(embeddings)
        self._found.append((embeddings, version, branches))
        return branches

    def groups(self, rows: int) -> int:
        """Return the number of groups of prompts in a pass of ``rows`` images or videos; 0 if it is not whole."""
        size = len(self._known[CONDITIONAL][0]) if self._known[CONDITIONAL] else rows + 1
        return rows // size if rows % size == 0 else 0

    def _compare(self, embeddings: torch.Tensor) -> list[str]:
        prompt, negative = (_rows_in(embeddings, self._known[branch]) for branch in (CONDITIONAL, UNCONDITIONAL))
        branches = [branch_of(*found) for found in zip(prompt, negative, strict=True)]
        if EQUAL in branches and len(set(branches)) > 1:
            branches = self._compare_groups(embeddings, branches)
        return branches

    def _compare_groups(self, embeddings: torch.Tensor, branches: list[str]) -> list[str]:
        """Resolve rows that are equal in both branches from the other rows of the same batch of prompts."""
        rows = len(embeddings)
        size = len(self._known[CONDITIONAL][0])
        for repeats in range(1, rows // size + 1):  # video pipelines repeat each row for every frame
            if rows % (size * repeats):
                continue
            groups = embeddings.split(size * repeats)
            found = [self._branch_of_group(group, repeats) for group in groups]
            if UNKNOWN not in found and EQUAL not in found:
                return [branch for branch in found for _ in range(size * repeats)]
        return branches

    def _branch_of_group(self, group: torch.Tensor, repeats: int) -> str:
        matches = [
            branch
            for branch, known in self._known.items()
            if any(_equal(group, tensor.repeat_interleave(repeats, dim=0)) for tensor in known)
        ]
        return matches[0] if len(matches) == 1 else EQUAL if matches else UNKNOWN


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b.to(a.device, a.dtype))


def _rows_in(embeddings: torch.Tensor, known: list[torch.Tensor]) -> list[bool]:
    """Return for each row of ``embeddings`` whether one of the tensors ``known`` contains it."""
    matches = torch.zeros(len(embeddings), dtype=torch.bool, device=embeddings.device)
    for tensor in known:
        if tensor.shape[1:] != embeddings.shape[1:]:
            continue
        for row in tensor.to(embeddings.device, embeddings.dtype):
            matches |= (embeddings == row).flatten(1).all(1)
    return matches.tolist()
