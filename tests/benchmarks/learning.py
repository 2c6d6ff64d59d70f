"""The settings that quality.py gives to every trainer. Also imported in the peers' venv."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Learning:
    """Settings of a training run. The learning rate rises linearly in the warm-up, then decays linearly to 0."""

    steps: int
    learning_rate: float
    warm_up: int
    dead_after_rows: int
    seed: int
