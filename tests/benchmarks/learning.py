"""What every trainer that is compared by quality is told; read in the peers' venv too."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Learning:
    """A run that is to learn: a linear warm-up, then a linear decay to 0."""

    steps: int
    learning_rate: float
    warm_up: int
    dead_after_rows: int
    seed: int
