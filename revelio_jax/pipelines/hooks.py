"""A hook point of one pipeline, and functions that run on its activations.

The activations of a hook point are one tensor [sample, position, d], whatever its module returns: the layer of a
text encoder, the block of a transformer, or a U-Net block whose positions are its pixels in row order.
"""

import contextlib
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator

from revelio_jax.errors import InputError

if typing.TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class HookPoint:
    """One hook point of one pipeline.

    ``module`` is hooked; ``component`` is the pipeline's attribute that it belongs to; ``d`` the
    width of its activations. ``part`` is where they are in a tuple that the module returns,
    ``is_map`` whether they come as [sample, d, height, width].
    """

    name: str
    component: str
    module: "torch.nn.Module"
    d: int
    part: int = 0
    is_map: bool = False
    needs_tuple: bool = False

    def read(self, output: typing.Any) -> "torch.Tensor":
        """The activations [sample, position, d] in what ``module`` returned; a view, not a copy."""
        hidden = self._hidden(output)
        return hidden.flatten(2).transpose(1, 2) if self.is_map else hidden

    def read_input(self, args: tuple, kwargs: dict[str, typing.Any]) -> "torch.Tensor":
        """What ``module`` was called with of the stream that :meth:`read` takes: [sample, position, d]."""
        name, place = self.argument
        hidden = kwargs[name] if name in kwargs else args[place]
        return hidden.flatten(2).transpose(1, 2) if self.is_map else hidden

    @functools.cached_property
    def argument(self) -> tuple[str, int]:
        """The argument of ``module`` that brings the stream: its name, and its place if it is without."""
        name = "encoder_hidden_states" if self.needs_tuple and self.part == 0 else "hidden_states"
        forward = getattr(self.module, "_orig_mod", self.module).forward
        parameters = list(inspect.signature(forward).parameters)
        return name, parameters.index(name) if name in parameters else 0

    def replace(self, output: typing.Any, hidden: "torch.Tensor") -> typing.Any:
        """``output`` with its activations exchanged for ``hidden`` [sample, position, d].

        The result has the structure of ``output`` and its dtype; ``output`` is left as it is.
        """
        before = self._hidden(output)
        if self.is_map:
            hidden = hidden.transpose(1, 2).reshape(before.shape)
        hidden = hidden.to(before.dtype)
        if not isinstance(output, tuple):
            return hidden
        return (*output[: self.part], hidden, *output[self.part + 1 :])

    def grid(self, output: typing.Any) -> tuple[int, int] | None:
        """Height and width of the positions of what ``module`` returned, where it is a map."""
        return tuple(self._hidden(output).shape[2:]) if self.is_map else None

    def _hidden(self, output: typing.Any) -> "torch.Tensor":
        if isinstance(output, tuple):
            return output[self.part]
        if self.needs_tuple:  # text and image in one tensor: diffusers before 0.35
            raise InputError(f"site {self.name}: this diffusers joins text and image in one tensor; use 0.36 or newer")
        return output


def hook(site: HookPoint, function: Callable[["torch.Tensor"], "torch.Tensor | None"]) -> Callable[[], None]:
    """Call ``function`` on the site's activations after every forward pass of its module.

    What it returns, if anything, takes their place. Returns what removes the hook.
    """

    def change(_args, _kwargs, output):
        hidden = function(site.read(output))
        return None if hidden is None else site.replace(output, hidden)

    return after(site.module, change)


def after(module: "torch.nn.Module", function: Callable[[tuple, dict, typing.Any], typing.Any]):
    """Call ``function`` on arguments and output of every forward pass; returns what removes it.

    What it returns, unless None, takes the output's place. It runs before the hooks that are there
    already: transformers captures hidden states by hooks that it never removes, and would miss a change
    made after them.
    """
    if getattr(module, "_compiled_call_impl", None) is None:
        handle = module.register_forward_hook(
            lambda _module, args, kwargs, output: function(args, kwargs, output),
            prepend=True,
            with_kwargs=True,
        )
        return handle.remove

    def wrap(compiled):
        def call(*args, **kwargs):
            output = compiled(*args, **kwargs)
            changed = function(args, kwargs, output)
            return output if changed is None else changed

        return call

    return _around_compiled(module, wrap)


def before(module: "torch.nn.Module", function: Callable[[tuple, dict], None]) -> Callable[[], None]:
    """Call ``function`` on the arguments before every forward pass, in Python; returns what removes it."""
    if getattr(module, "_compiled_call_impl", None) is None:
        handle = module.register_forward_pre_hook(
            lambda _module, args, kwargs: function(args, kwargs), prepend=True, with_kwargs=True
        )
        return handle.remove

    def wrap(compiled):
        def call(*args, **kwargs):
            function(args, kwargs)
            return compiled(*args, **kwargs)

        return call

    return _around_compiled(module, wrap)


def _around_compiled(module: "torch.nn.Module", wrap: Callable[[Callable], Callable]) -> Callable[[], None]:
    """Go around a module that was compiled in place, whose own hooks are part of what was compiled."""
    inner = module._compiled_call_impl
    outer = wrap(inner)
    current = [outer]

    def call(*args, **kwargs):
        return current[0](*args, **kwargs)

    def remove() -> None:
        current[0] = inner  # where another has gone around this one since, it stays, and does nothing
        if module._compiled_call_impl is call:
            module._compiled_call_impl = inner

    module._compiled_call_impl = call
    return remove


@contextlib.contextmanager
def captured(site: HookPoint) -> Iterator[list["torch.Tensor"]]:
    """A list that gains the activations [sample, position, d] of every forward pass in the block."""
    outputs: list[torch.Tensor] = []
    remove = hook(site, outputs.append)
    try:
        yield outputs
    finally:
        remove()
