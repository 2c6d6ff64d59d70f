"""The pipeline as it is: what every method is compared with."""

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Generator, Sequence

from revelio_jax.baselines.sampler import Sampler
from revelio_jax.pipelines.sampling import sample


@dataclasses.dataclass(frozen=True)
class Plain:
    """The plain pipeline has no settings."""


@contextlib.contextmanager
def plain(pipe: typing.Any, phrases: Sequence[str], settings: Plain) -> Generator[Sampler]:
    """Yield a sampler of the plain pipeline; the phrases are ignored."""
    yield functools.partial(sample, pipe)
