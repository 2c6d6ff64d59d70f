"""The mean FVU of the steps since the previous checkpoint, which decides which checkpoint is the best."""

import typing


class FvuMean(typing.NamedTuple):
    """A mean over steps that a run can stop and continue: added in the order of the steps, so with the same bits."""

    total: float = 0.0
    steps: int = 0

    def add(self, fvu: float) -> "FvuMean":
        return FvuMean(self.total + fvu, self.steps + 1)

    @property
    def value(self) -> float:
        return self.total / self.steps
