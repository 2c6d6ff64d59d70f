"""Means of a hook point's activations on reference samples, and a random choice of its rows.

T positions, D width, N rows.
"""

import torch

POSITION_LIMIT = 2**18  # values per timestep up to which a denoiser's positions have means of their own
Key = int | None
"""A rounded timestep, or None in a text encoder."""


class ActivationMeans:
    """Sums of activations [B, T, D] by timestep and position.

    Maps of more than POSITION_LIMIT values have one mean per timestep, over their positions, because the means of a
    large denoiser would not fit into memory. ``keep_rows`` rows are kept, drawn evenly from all passes.
    """

    def __init__(self, keep_rows: int = 0, seed: int = 0):
        self._sums: dict[Key, torch.Tensor] = {}
        self._counts: dict[Key, torch.Tensor] = {}
        self._kept: list[torch.Tensor] = []
        self._priorities: list[torch.Tensor] = []
        self._keep, self._generator = keep_rows, torch.Generator().manual_seed(seed)

    def add(self, x_BTD: torch.Tensor, timestep: float | None = None, mask_BT: torch.Tensor | None = None) -> None:
        """Add activations; ``mask_BT``, bool, selects the rows to count."""
        x_BTD = x_BTD.float()
        mask_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool) if mask_BT is None else mask_BT.cpu()
        self._keep_rows(x_BTD, mask_BT)
        mask_BT = mask_BT.to(x_BTD.device)
        sum_TD = torch.where(mask_BT[..., None], x_BTD, 0.0).sum(0, dtype=torch.float64).cpu()
        count_T1 = mask_BT.sum(0)[:, None].double().cpu()
        key = None if timestep is None else round(timestep)
        if key is not None and sum_TD.numel() > POSITION_LIMIT:
            sum_TD, count_T1 = sum_TD.sum(0, keepdim=True), count_T1.sum(0, keepdim=True)
        if key in self._sums:
            self._sums[key] += sum_TD
            self._counts[key] += count_T1
        else:
            self._sums[key], self._counts[key] = sum_TD, count_T1

    @property
    def is_empty(self) -> bool:
        """Return whether no row was added."""
        return not any(bool(count.any()) for count in self._counts.values())

    def mean(self) -> torch.Tensor:
        """Return the mean of all rows, float32 [D]."""
        total = sum(sum_TD.sum(0) for sum_TD in self._sums.values())
        count = sum(count_T1.sum() for count_T1 in self._counts.values())
        return torch.as_tensor(total / count).float()

    def at(self, timestep: float | None) -> torch.Tensor:
        """Return the mean of each position at the nearest timestep, float32 [T or 1, D].

        A position without rows has the mean of all rows.
        """
        key = None if timestep is None else min(self._sums, key=lambda each: abs((each or 0) - timestep))
        key = next(iter(self._sums)) if key not in self._sums else key
        count_T1 = self._counts[key]
        mean_TD = (self._sums[key] / count_T1.clamp(min=1)).float()
        return torch.where(count_T1 > 0, mean_TD, self.mean())

    def rows(self) -> torch.Tensor:
        """Return the kept rows, float32 [N, D]."""
        kept, priorities = torch.cat(self._kept), torch.cat(self._priorities)
        return kept[priorities.topk(min(self._keep, len(kept))).indices]

    def _keep_rows(self, x_BTD: torch.Tensor, mask_BT: torch.Tensor) -> None:
        """Keep the rows of highest random priority, which is a uniform choice from all rows."""
        if not self._keep:
            return
        x_ND = x_BTD[mask_BT.to(x_BTD.device)].cpu()
        self._kept.append(x_ND)
        self._priorities.append(torch.rand(len(x_ND), generator=self._generator))
        if sum(map(len, self._kept)) > 2 * self._keep:
            kept, priorities = torch.cat(self._kept), torch.cat(self._priorities)
            chosen = priorities.topk(self._keep).indices
            self._kept, self._priorities = [kept[chosen]], [priorities[chosen]]
