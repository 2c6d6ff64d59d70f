"""A hook point of one pipeline, and functions that run on its activations.

The activations of a hook point are always one tensor [sample, position, d]. The module may be a layer of a text
encoder, a block of a transformer, or a U-Net block. Positions of a U-Net block are its pixels in row order.
"""

import contextlib
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Generator

from revelio_jax.errors import InputError

if typing.TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class HookPoint:
    """One hook point of one pipeline.

    ``module`` is the module to hook, ``component`` the attribute of the pipeline that contains it, and ``d`` the width
    of the activations. ``output_index`` is their index if the module returns a tuple. ``is_map``: the module returns
    [sample, d, height, width]. ``needs_tuple``: the module must return a tuple of text and image.
    """

    name: str
    component: str
    module: "torch.nn.Module"
    d: int
    output_index: int = 0
    is_map: bool = False
    needs_tuple: bool = False

    def read(self, output: typing.Any) -> "torch.Tensor":
        """Return the activations [sample, position, d] in an output of ``module``: a view, not a copy."""
        hidden = self._hidden(output)
        return hidden.flatten(2).transpose(1, 2) if self.is_map else hidden

    def read_input(self, args: tuple, kwargs: dict[str, typing.Any]) -> "torch.Tensor":
        """Return the input of ``module`` for the stream that :meth:`read` returns: [sample, position, d]."""
        name, position = self.argument
        hidden = kwargs[name] if name in kwargs else args[position]
        return hidden.flatten(2).transpose(1, 2) if self.is_map else hidden

    @functools.cached_property
    def argument(self) -> tuple[str, int]:
        """Return the name and the position of the argument of ``module`` that holds the stream."""
        name = "encoder_hidden_states" if self.needs_tuple and self.output_index == 0 else "hidden_states"
        forward = getattr(self.module, "_orig_mod", self.module).forward
        parameters = list(inspect.signature(forward).parameters)
        return name, parameters.index(name) if name in parameters else 0

    def replace(self, output: typing.Any, hidden: "torch.Tensor") -> typing.Any:
        """Return ``output`` with its activations replaced by ``hidden`` [sample, position, d].

        The result has the structure and the dtype of ``output``, which is not changed.
        """
        original = self._hidden(output)
        if self.is_map:
            hidden = hidden.transpose(1, 2).reshape(original.shape)
        hidden = hidden.to(original.dtype)
        if not isinstance(output, tuple):
            return hidden
        return (*output[: self.output_index], hidden, *output[self.output_index + 1 :])

    def grid(self, output: typing.Any) -> tuple[int, int] | None:
        """Return height and width, in positions, of an output of ``module`` if it is a map, otherwise None."""
        if not self.is_map:
            return None
        height, width = self._hidden(output).shape[2:]
        return height, width

    def _hidden(self, output: typing.Any) -> "torch.Tensor":
        if isinstance(output, tuple):
            return output[self.output_index]
        if self.needs_tuple:  # text and image in one tensor: diffusers before 0.35
            raise InputError(
                f"hook point {self.name}: this diffusers joins text and image in one tensor; use 0.36 or newer"
            )
        return output


class _Hook:
    """A hook of one module. Copies and pickles of the module have a hook that does nothing."""

    def __init__(self, function: Callable):
        self.function = function

    def __reduce__(self) -> tuple:
        return _no_hook, ()


class _After(_Hook):
    def __call__(self, _module: typing.Any, args: tuple, kwargs: dict, output: typing.Any) -> typing.Any:
        return self.function(args, kwargs, output)


class _Before(_Hook):
    def __call__(self, _module: typing.Any, args: tuple, kwargs: dict) -> typing.Any:
        return self.function(args, kwargs)


def _no_hook() -> Callable[..., None]:
    return _nothing


def _nothing(*_args: typing.Any) -> None:
    """Do nothing."""


def hook(point: HookPoint, function: Callable[["torch.Tensor"], "torch.Tensor | None"]) -> Callable[[], None]:
    """Call ``function`` on the activations of a hook point after every forward pass of its module.

    If it returns a tensor, the tensor replaces them. Return a function that removes the hook.
    """

    def after(_args, _kwargs, output):
        hidden = function(point.read(output))
        return None if hidden is None else point.replace(output, hidden)

    return after_forward(point.module, after)


def after_forward(module: "torch.nn.Module", function: Callable[[tuple, dict, typing.Any], typing.Any]):
    """Call ``function`` on the arguments and the output of every forward pass.

    If it returns a value other than None, the value replaces the output. Return a function that removes the hook.

    The hook runs before existing ones: transformers captures hidden states with hooks that it never removes, and these
    would miss a later change.
    """
    if getattr(module, "_compiled_call_impl", None) is None:
        handle = module.register_forward_hook(_After(function), prepend=True, with_kwargs=True)
        return handle.remove

    def wrap(compiled):
        def call(*args, **kwargs):
            output = compiled(*args, **kwargs)
            changed = function(args, kwargs, output)
            return output if changed is None else changed

        return call

    return _around_compiled(module, wrap)


def before_forward(module: "torch.nn.Module", function: Callable[[tuple, dict], None]) -> Callable[[], None]:
    """Call ``function`` on the arguments before every forward pass, outside compiled code.

    Return a function that removes the hook.
    """
    if getattr(module, "_compiled_call_impl", None) is None:
        handle = module.register_forward_pre_hook(_Before(function), prepend=True, with_kwargs=True)
        return handle.remove

    def wrap(compiled):
        def call(*args, **kwargs):
            function(args, kwargs)
            return compiled(*args, **kwargs)

        return call

    return _around_compiled(module, wrap)


def _around_compiled(module: "torch.nn.Module", wrap: Callable[[Callable], Callable]) -> Callable[[], None]:
    """Wrap a module that was compiled in place: hooks registered on it now would not run."""
    inner: Callable = typing.cast(Callable, module._compiled_call_impl)
    outer = wrap(inner)
    current = [outer]

    def call(*args, **kwargs):
        return current[0](*args, **kwargs)

    def remove() -> None:
        current[0] = inner  # a later wrapper may still call this one, which then does nothing
        if module._compiled_call_impl is call:
            module._compiled_call_impl = inner

    module._compiled_call_impl = call
    return remove


@contextlib.contextmanager
def capture(point: HookPoint) -> Generator[list["torch.Tensor"]]:
    """Yield a list that collects the activations [sample, position, d] of every forward pass in the block."""
    outputs: list[torch.Tensor] = []
    remove = hook(point, outputs.append)
    try:
        yield outputs
    finally:
        remove()
