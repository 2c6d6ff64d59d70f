"""The branches of classifier-free guidance, and the branch that a pipeline names for a pass of its denoiser.

With guidance a denoiser runs on the prompt and on the negative prompt. Most pipelines put both into one batch. FLUX
runs them in separate passes and names the branch of each pass, so passes need not be counted.
"""

import contextlib
import threading
import typing
from collections.abc import Generator

CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
BRANCH_OF_NAME = {"cond": CONDITIONAL, "uncond": UNCONDITIONAL}


@contextlib.contextmanager
def named_branches(denoiser: typing.Any) -> Generator[list[str | None]]:
    """Yield a list whose last item is the branch that the pipeline names for the current pass, or None.

    Use it during one call of a pipeline only, because another pipeline may share the denoiser.
    """
    branch: list[str | None] = [None]
    thread = threading.get_ident()
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # torch.compile wraps a module
    original = getattr(denoiser, "cache_context", None)
    if original is None:
        yield branch
        return

    @contextlib.contextmanager
    def cache_context(name: str, *args: typing.Any, **kwargs: typing.Any) -> Generator[None]:
        if threading.get_ident() != thread:  # a pass of another pipeline that shares the denoiser
            with original(name, *args, **kwargs):
                yield
            return
        branch.append(BRANCH_OF_NAME.get(name))
        try:
            with original(name, *args, **kwargs):
                yield
        finally:
            branch.pop()

    previous = vars(denoiser).get("cache_context")
    denoiser.cache_context = cache_context
    try:
        yield branch
    finally:
        if previous is None:
            del denoiser.cache_context  # uncovers the method of the class
        else:
            denoiser.cache_context = previous
