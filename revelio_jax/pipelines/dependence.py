"""Find hook points that nothing in the image depends on, such as the last layer of SDXL's first text encoder.

A forward pass on the meta device, which has shapes but no values, records which tensors are computed from which. So
neither weights nor a list of names are needed, and the code of the pipeline itself is asked. Text encoders run through
``encode_prompt``, because the pipeline decides there which of their outputs it keeps.
"""

import contextlib
import copy
import functools
import sys
import types
import typing
from collections.abc import Callable, Generator, Iterable

import diffusers
import torch

from revelio_jax.pipelines import assembly, hooks
from revelio_jax.pipelines.families import Family, family_of
from revelio_jax.pipelines.families.base import LONGEST_PROMPT

if typing.TYPE_CHECKING:
    from revelio_jax.pipelines.source import PipelineSource

SIZE = (64, 64)  # pixels; the graph does not depend on them
# What code of a pipeline raises that does not fit a forward pass on meta. Nothing is known then.
UNKNOWN = (TypeError, AttributeError, ValueError, RuntimeError, NotImplementedError, KeyError, IndexError)


@contextlib.contextmanager
def traced(points: Iterable[hooks.HookPoint]) -> Generator[Callable[[typing.Any], frozenset[str]]]:
    """Record the graph of forward passes on meta in the block.

    Yield a function that returns the names of the hook points that no tensor of an iterable depends on.
    """
    leaves: dict[str, torch.Tensor] = {}

    def unused(outputs: Iterable[typing.Any]) -> frozenset[str]:
        reached = _leaves_of([tensor for tensor in outputs if isinstance(tensor, torch.Tensor)])
        return frozenset(name for name, leaf in leaves.items() if id(leaf) not in reached)

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for point in points:
            leaf = leaves[point.name] = torch.zeros((), device="meta", requires_grad=True)
            stack.callback(hooks.hook(point, functools.partial(torch.add, leaf)))
        yield unused


def _leaves_of(outputs: list[torch.Tensor]) -> set[int]:
    """Return the ids of the tensors at which the graph of autograd begins."""
    todo, seen, leaves = [output.grad_fn for output in outputs], set[typing.Any](), set[int]()
    while todo:
        node: typing.Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        todo += [inner for inner, _ in node.next_functions]
    return leaves


def unused_in_text_encoders(pipe: typing.Any, clip_skip: int | None = None) -> frozenset[str]:
    """Return the names of hook points of a pipeline's text encoders that ``encode_prompt`` does not use.

    ``clip_skip`` is the argument of the pipeline's call. If the pipeline cannot be traced, nothing is known, and the
    result is empty.
    """
    family = family_of(pipe)
    if not family.text_encoders:
        return frozenset()
    try:
        twin = _meta_twin(pipe, family)
        if clip_skip is not None:
            vars(twin)["encode_prompt"] = functools.partial(twin.encode_prompt, clip_skip=clip_skip)
        return _unused_in(twin, family)
    except UNKNOWN:
        return frozenset()


def unused_in_skeleton(source: "PipelineSource", skeleton: typing.Any) -> frozenset[str]:
    """Return the result of :func:`unused_in_text_encoders` for text encoders on meta, without a pipeline's weights."""
    if source.layout.is_standalone or not source.layout.text_encoders:
        return frozenset()
    try:
        return _unused_in(_text_pipeline(source, skeleton), source.layout)
    except UNKNOWN:
        return frozenset()


def unused_in_denoiser(pipe: typing.Any) -> frozenset[str]:
    """Return the names of hook points of a pipeline's denoiser that its output does not depend on.

    If the denoiser cannot be traced, nothing is known, and the result is empty.
    """
    family = family_of(pipe)
    model = family.denoiser_of(pipe)
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps a module
    try:
        with torch.device("meta"):
            model = type(model).from_config(dict(model.config)).eval().to("meta")
        size = model.config.get("sample_size") or 16  # FLUX takes any size
        latents = torch.empty(1, pipe.vae.config.latent_channels, size, size, device="meta")
        with traced(family.denoiser_hook_points(model)) as unused:
            arguments = family.denoiser_arguments(latents, 0, family.empty_conditioning(pipe, latents, None))
            return unused(model(**arguments, return_dict=False))
    except UNKNOWN:
        return frozenset()


def warn_of_unused(names: Iterable[str], unused: frozenset[str]) -> None:
    """Print a line for each hook point of config.extract.sites that is unused; names may be joined by +."""
    for name in names:
        for part in name.split("+"):
            if part in unused:
                print(
                    f"warning: config.extract.sites contains {name}, but no output of the pipeline depends on {part}; "
                    "an SAE of it can be interpreted, but cannot steer",
                    file=sys.stderr,
                )


def _unused_in(pipe: typing.Any, family: Family) -> frozenset[str]:
    """Return the names of hook points of text encoders on meta that ``encode_prompt`` does not use."""
    points = [point for point in family.hook_points(pipe) if point.component in family.text_encoders.values()]
    with traced(points) as unused:
        return unused(family.conditioning(pipe, "", 1.0, SIZE).values())


def _meta_twin(pipe: typing.Any, family: Family) -> typing.Any:
    """Return a copy of a pipeline with its text encoders on meta and without its other models."""
    twin = copy.copy(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            is_encoder = name in family.text_encoders.values()
            vars(twin)[name] = _on_meta(part) if is_encoder else None
    return twin


def _on_meta(encoder: typing.Any) -> torch.nn.Module:
    """Return a text encoder of the same architecture on meta."""
    encoder = getattr(encoder, "_orig_mod", encoder)  # torch.compile wraps a module
    with torch.device("meta"):
        return type(encoder)(encoder.config).eval()


def _text_pipeline(source: "PipelineSource", skeleton: typing.Any) -> typing.Any:
    """Return the diffusers pipeline of a source with only the text encoders of ``skeleton``; see ``_ZeroTokenizer``."""
    cls: typing.Any = getattr(diffusers, source.class_name)
    parts: dict[str, typing.Any] = {}
    for component in source.layout.text_encoders.values():
        encoder = parts[component] = getattr(skeleton, component)
        length = getattr(encoder.config, "max_position_embeddings", LONGEST_PROMPT)
        parts[component.replace("text_encoder", "tokenizer")] = _ZeroTokenizer(length)
    return assembly.assemble(cls, parts, source.index)


class _ZeroTokenizer:
    """Stands for a tokenizer whose files are not read; each prompt becomes zeros."""

    def __init__(self, model_max_length: int):
        self.model_max_length = model_max_length
        self.added_tokens_encoder: dict[str, int] = {}

    def tokenize(self, text: str) -> list[str]:
        return []

    def __call__(self, text: str | list[str], max_length: int | None = None, **_: typing.Any) -> typing.Any:
        rows = 1 if isinstance(text, str) else len(text)
        ids = torch.zeros(rows, max_length or self.model_max_length, dtype=torch.int64)
        return types.SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))
