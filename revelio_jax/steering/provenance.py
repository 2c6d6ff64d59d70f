"""Remember which embeddings were computed from steered text encoders, so that a call accepts only these.

Outside of a pipeline's call, a text encoder runs under ``attached.encoding(branch)``. In that block every tensor that
is computed from its output is marked, whatever package computes it. Marks do not keep tensors alive.
"""

import typing
from collections.abc import Iterator, Mapping

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary


class Provenance:
    """Marks of tensors: the branch of guidance and the version of the strengths that steered them."""

    def __init__(self):
        self._marks: typing.Any = WeakIdKeyDictionary()

    def mark(self, tensor: torch.Tensor, branch: str, version: int) -> None:
        """Mark a tensor as computed from an encoder that was steered for ``branch``."""
        self._marks[tensor] = branch, version

    def of(self, tensor: typing.Any) -> tuple[str, int] | None:
        """Return the branch and the version of a marked tensor, None for others."""
        return self._marks.get(tensor) if isinstance(tensor, torch.Tensor) else None


class Following(TorchFunctionMode):
    """While active, results of torch functions get the mark of their arguments."""

    def __init__(self, provenance: Provenance):
        super().__init__()
        self._provenance = provenance

    def __torch_function__(
        self,
        func: typing.Any,
        types: typing.Any,
        args: tuple[typing.Any, ...] = (),
        kwargs: dict[str, typing.Any] | None = None,
    ) -> typing.Any:
        result = func(*args, **(kwargs or {}))
        marks = (self._provenance.of(tensor) for tensor in tensors((args, kwargs)))
        mark = next((mark for mark in marks if mark), None)
        if mark:
            # Assignments such as x[i] = y return None and change their first argument.
            for tensor in tensors(args[:1] if result is None else result):
                self._provenance.mark(tensor, *mark)
        return result


def tensors(value: typing.Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a nested value."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in typing.cast("Mapping[typing.Any, typing.Any]", value).values():
            yield from tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in typing.cast("list[typing.Any]", value):
            yield from tensors(inner)
