"""Which branch of guidance a text encoder is running for.

``encode_prompt`` of a pipeline runs its text encoder for the prompt and for the negative prompt.
Counting those calls goes wrong as soon as one of them is left out, so while a steerer is attached
the two are asked for one after the other, and :func:`current` names the one being encoded.
"""

import contextlib
import contextvars
import functools
import inspect
import typing
from collections.abc import Iterator

CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
_branch: contextvars.ContextVar[str | None] = contextvars.ContextVar("branch", default=None)


def current() -> str | None:
    """The branch being encoded; None outside ``encode_prompt``."""
    return _branch.get()


def watch(pipe: typing.Any) -> None:
    """Let :func:`current` follow ``pipe.encode_prompt``; every call needs one :func:`unwatch`."""
    watched = pipe.__dict__.get("encode_prompt")
    if watched is None:
        watched = functools.partial(_encode_prompt, pipe.encode_prompt)
        watched.watchers = 0
        pipe.encode_prompt = watched
    watched.watchers += 1


def unwatch(pipe: typing.Any) -> None:
    watched = pipe.__dict__["encode_prompt"]
    watched.watchers -= 1
    if watched.watchers == 0:
        del pipe.encode_prompt  # the class's own method shows again


def _encode_prompt(original: typing.Callable, *args: typing.Any, **kwargs: typing.Any) -> tuple:
    """``encode_prompt`` of Stable Diffusion: (prompt embeddings, negative embeddings or None)."""
    call = inspect.signature(original).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    if given["prompt_embeds"] is not None or given["negative_prompt_embeds"] is not None:
        raise ValueError(
            "prompt_embeds cannot be steered: the text encoder does not run for them. "
            "Pass the prompt as text, or encode it with pipe.encode_prompt inside the block"
        )
    guided = given["do_classifier_free_guidance"]
    given["do_classifier_free_guidance"] = False
    with _as(CONDITIONAL):
        positive = original(*call.args, **call.kwargs)[0]
    if not guided:
        return positive, None
    # With the prompt's embeddings given, only the negative prompt is encoded.
    given["do_classifier_free_guidance"] = True
    given["prompt_embeds"] = positive[:: given["num_images_per_prompt"]]
    with _as(UNCONDITIONAL):
        return positive, original(*call.args, **call.kwargs)[1]


@contextlib.contextmanager
def _as(branch: str) -> Iterator[None]:
    token = _branch.set(branch)
    try:
        yield
    finally:
        _branch.reset(token)
