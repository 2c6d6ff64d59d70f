"""One rule for safety checkers, which replace images that they flag by black ones.

A pipeline that this project loads has none, and loading prints that. A pipeline that the caller has built keeps its
own. The images that it flags are named and left out of every figure.
"""

import typing

import numpy as np

from revelio_jax.pipelines.source import PipelineSource


def announce_dropped(source: PipelineSource) -> None:
    """Print that the safety checker of a pipeline is not loaded, if it has one."""
    if any(source.index.get("safety_checker") or ()):
        print(f"the safety checker of {source.id} is not loaded: it would replace the images it flags by black ones")


def is_active(pipe: typing.Any) -> bool:
    """Return whether a pipeline has a safety checker."""
    return getattr(pipe, "safety_checker", None) is not None


def flagged(output: typing.Any, count: int) -> np.ndarray:
    """Return which of the ``count`` images in the output of a pipeline's call were flagged: bool [count]."""
    flags = getattr(output, "nsfw_content_detected", None)
    return np.zeros(count, bool) if flags is None else np.asarray(flags, bool)


def announce_flagged(flags: np.ndarray, prompts: list[str], seeds: list[int]) -> None:
    """Print one line that names the flagged images by prompt and seed; ``flags`` is bool [image]."""
    if flags.any():
        names = [f"{prompts[i]!r} with seed {seeds[i]}" for i in np.flatnonzero(flags)]
        print(f"the safety checker flagged {len(names)} of {len(flags)} images, which are left out: {'; '.join(names)}")
