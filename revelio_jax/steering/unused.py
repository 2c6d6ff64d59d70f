"""Refuse to steer hook points that nothing in the image depends on; see :mod:`revelio_jax.pipelines.dependence`."""

import typing
import weakref
from collections.abc import Hashable, Iterable

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import dependence, hook_points, hooks

_UNUSED: weakref.WeakKeyDictionary[torch.nn.Module, dict[Hashable, frozenset[str]]] = weakref.WeakKeyDictionary()
"""Names of unused hook points by component, class of the pipeline and ``clip_skip``."""


def refuse_unused(pipe: typing.Any, points: Iterable[hooks.HookPoint], clip_skip: int | None = None) -> None:
    """Raise InputError if no output of the pipeline depends on one of the hook points.

    ``clip_skip`` is the argument of the pipeline's call, which leaves out the last layers of CLIP. The first call for a
    component takes seconds for a large model, later calls look the result up.
    """
    for point in points:
        is_text = not hook_points.is_denoiser_point(point.name)
        if point.name in _unused(pipe, point.component, clip_skip if is_text else None, is_text):
            with_skip = f" with clip_skip={clip_skip}" if is_text and clip_skip else ""
            raise InputError(
                f"{point.name} cannot be steered, because no output of a {type(pipe).__name__} depends on it"
                f"{with_skip}; use an earlier hook point"
            )


def _unused(pipe: typing.Any, component: str, clip_skip: int | None, is_text: bool) -> frozenset[str]:
    by_use = _UNUSED.setdefault(getattr(pipe, component), {})
    # While anything is attached, the class is a subclass with the same name.
    key = type(pipe).__module__, type(pipe).__qualname__, clip_skip
    if key not in by_use:
        by_use[key] = (
            dependence.unused_in_text_encoders(pipe, clip_skip) if is_text else dependence.unused_in_denoiser(pipe)
        )
    return by_use[key]
