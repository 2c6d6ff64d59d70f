"""The section of the configuration that `revelio benchmark` reads."""

import dataclasses
import math

from revelio_jax.config.fields import field
from revelio_jax.errors import InputError

METHODS = (
    "plain",
    "steer rule=paper",
    "steer rule=contrast",
    "steer rule=gated",
    "steer rule=swap",
    "difference_of_means",
    "random_direction",
)


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """The table of methods that remove a concept; only the command benchmark uses it."""

    concepts: tuple[str, ...] = field(
        (), "concepts to remove: column=value of config.steer.prompts, or a text; the flag --concept replaces them"
    )
    methods: tuple[str, ...] = field(
        METHODS, "methods with their settings, for example 'plain', 'steer rule=swap', 'sld preset=max'"
    )
    strengths: tuple[float, ...] = field(
        (-0.25, -0.5, -0.75, -1.0, -1.5, -2.0), "strengths of methods that have one; negated for adding a concept"
    )
    prompt_sets: tuple[str, ...] = field(
        (),
        "more prompt files with their roles concept, other, neighbors or alignment, for example 'coco.csv role=other'",
    )
    quality: tuple[str, ...] = field(
        (),
        "figures of the images of prompts with the role other: 'clip model=FOLDER', 'fid features=FILE', 'frechet "
        "model=FOLDER', 'lpips backbone=FILE weights=FILE'",
    )
    prompts: int = field(80, "labeled prompts with a concept, and as many without it", low=2)
    seeds: int = field(3, "images per prompt", low=1)
    add: bool = field(True, "also measure adding a concept to labeled prompts that leave out its label")
    repetitions: int = field(5, "timed batches per method; 0: no times", low=0)
    pictures: int = field(6, "prompts with the concept, and without it, on the page of pictures", low=1, high=100)

    def __post_init__(self):
        """Raise InputError if a field is not allowed."""
        if not self.methods:
            raise InputError("config.benchmark.methods is empty; it must be a list of methods, for example ('plain',)")
        if not self.strengths or not all(math.isfinite(s) and s for s in self.strengths):
            raise InputError(
                f"config.benchmark.strengths is {self.strengths}; it must be a list of numbers other than 0; the "
                "method plain has strength 0"
            )
