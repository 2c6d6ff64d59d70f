"""Check that an SAE belongs to a pipeline, by family, width and name of the model, and that its hook points matter."""

import pathlib
import typing
import weakref
from collections.abc import Hashable, Iterable

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import dependence, hook_points, hooks
from revelio_jax.pipelines.families import family_of
from revelio_jax.steering.sae import Sae

_UNUSED: weakref.WeakKeyDictionary[torch.nn.Module, dict[Hashable, frozenset[str]]] = weakref.WeakKeyDictionary()
"""Names of unused hook points by component, class of the pipeline and ``clip_skip``."""


def hook_points_of(sae: Sae, pipe: typing.Any) -> tuple[hooks.HookPoint, ...]:
    """Return the hook points of ``pipe`` that the SAE was trained on. Hook points joined by + share one SAE.

    Raise InputError if the SAE belongs to another family, or has another width.
    """
    trained_on, family = sae.metadata.get("model_id", ""), sae.metadata.get("family")
    if family and family != family_of(pipe).name:
        raise InputError(
            f"the SAE is for another model: it was trained on {trained_on!r}, of the family {family}; this pipeline is "
            f"of the family {family_of(pipe).name}"
        )
    site = sae.site
    points = hook_points.resolve_joined(pipe, site)
    width = sum(point.d for point in points)
    if width != sae.d:
        raise InputError(
            f"the SAE is for another model: its width is {sae.d}, but {site} of this pipeline has width {width}; it "
            f"was trained on {trained_on!r}"
        )
    return points


def check_model_name(sae: Sae, pipe: typing.Any) -> None:
    """Raise InputError if the pipeline and the model that the SAE was trained on have different names."""
    trained_on, name = sae.metadata.get("model_id", ""), pipe.name_or_path or ""
    if trained_on and name and not same_model(trained_on, name):
        raise InputError(
            f"the SAE is for another model: it was trained on {trained_on!r}, this pipeline is {name!r}; if it is the "
            "same model or derived from it, pass other_model=True"
        )


def same_model(first: str, second: str) -> bool:
    """Return whether two hub ids or folders have the same model name, ignoring owners and parent folders."""
    return _model_name(first) == _model_name(second)


def _model_name(model: str) -> str:
    parts = pathlib.PurePath(model).parts
    cached = [part for part in parts if part.startswith("models--")]  # the hub's cache: models--OWNER--NAME
    return (cached[-1].split("--")[-1] if cached else parts[-1] if parts else "").lower()


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
