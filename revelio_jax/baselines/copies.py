"""A pipeline of another class on the components of a loaded pipeline, which it leaves as they are."""

import contextlib
import typing
from collections.abc import Generator

from revelio_jax.pipelines import assembly


@contextlib.contextmanager
def sharing(pipe: typing.Any, cls: type) -> Generator[typing.Any]:
    """Yield a pipeline of the class ``cls`` with the components and settings of ``pipe``.

    The scheduler is a copy, because constructors of diffusers change the scheduler's config. If components of ``pipe``
    are offloaded, they are on the CPU again after the block.
    """
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    copy = assembly.assemble(cls, pipe.components | {"scheduler": scheduler}, pipe.config)
    copy.set_progress_bar_config(disable=True)
    try:
        yield copy
    finally:
        pipe.maybe_free_model_hooks()
