"""Which rows of a denoiser's batch, or which of its passes, see the prompt.

Under guidance a denoiser runs for the prompt and for the negative prompt. Most pipelines put both in one
batch; FLUX runs them one after the other and names each. Nothing here counts calls.
"""

import contextlib
import typing
from collections.abc import Iterator

CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
_TOLD = {"cond": CONDITIONAL, "uncond": UNCONDITIONAL}


def branches(layout: str, rows: int, guided: bool) -> dict[str, slice]:
    """The rows of a batch of ``rows`` that each branch has, for a family that joins them in one batch."""
    if not guided:
        return {CONDITIONAL: slice(0, rows)}
    first, second = slice(0, rows // 2), slice(rows // 2, rows)
    if layout == "dit":  # it puts the classes first
        return {CONDITIONAL: first, UNCONDITIONAL: second}
    return {UNCONDITIONAL: first, CONDITIONAL: second}


@contextlib.contextmanager
def told(denoiser: typing.Any) -> Iterator[list[str | None]]:
    """A list whose last is the branch that the pipeline says it runs; None where it says nothing.

    In force during one call of a pipeline, since the denoiser may be another pipeline's too.
    """
    branch: list[str | None] = [None]
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # of a compiled one
    original = getattr(denoiser, "cache_context", None)
    if original is None:
        yield branch
        return

    @contextlib.contextmanager
    def cache_context(name: str, *args: typing.Any, **kwargs: typing.Any) -> Iterator[None]:
        branch.append(_TOLD.get(name))
        try:
            with original(name, *args, **kwargs):
                yield
        finally:
            branch.pop()

    before = vars(denoiser).get("cache_context")
    denoiser.cache_context = cache_context
    try:
        yield branch
    finally:
        if before is None:
            del denoiser.cache_context  # the class's own method shows again
        else:
            denoiser.cache_context = before
